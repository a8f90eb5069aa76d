"""Arrays in every layout a kernel may be handed, in guarded memory, and bfloat16 as its bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from support.guarded import PATTERN, Guards

Array = npt.NDArray[Any]
NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "bool": np.bool_}


class Layout(NamedTuple):
    """How an array lies in memory; all is per axis except ``offset``."""

    order: tuple[int, ...]  # axes from slowest to fastest
    steps: tuple[int, ...]  # distance of neighbours along an axis, negative: backwards
    margins: tuple[int, ...]  # elements of the surroundings behind the last one of an axis
    offset: int = 0  # elements behind a multiple of 64 bytes


class Placed(NamedTuple):
    """An array within a larger one."""

    view: Array
    memory: Array

    def surroundings_are_untouched(self) -> bool:
        """Whether all but the view is as it was made; the view itself is lost."""
        unsigned = np.dtype(f"u{self.view.itemsize}")
        self.view.view(unsigned)[...] = np.iinfo(unsigned).max
        return bool((self.memory.reshape(-1).view(np.uint8) == PATTERN).all())


def plain(rank: int) -> Layout:
    """Contiguous."""
    return Layout(tuple(range(rank)), (1,) * rank, (0,) * rank)


def random_layout(rng: np.random.Generator, rank: int) -> Layout:
    """Anything: permuted, reversed, with gaps; half of the time the last axis is contiguous."""
    order = [int(axis) for axis in rng.permutation(rank)]
    steps = [int(step) for step in rng.choice([1, 1, 1, 2, -1, -2, 3], rank)]
    if rank and rng.random() < 0.5:
        order = sorted(order)
        steps[-1] = 1
    margins = tuple(int(margin) for margin in rng.choice([0, 0, 0, 1, 2], rank))
    return Layout(tuple(order), tuple(steps), margins, int(rng.integers(4)))


def place(guards: Guards, shape: tuple[int, ...], dtype: str, layout: Layout) -> Placed:
    """An array of ``shape`` with NaN everywhere, also in its gaps."""
    spans = [n * abs(s) + m for n, s, m in zip(shape, layout.steps, layout.margins, strict=True)]
    memory = guards.empty(tuple(spans[axis] for axis in layout.order), NUMPY[dtype], layout.offset)
    view = memory.transpose(np.argsort(layout.order)) if shape else memory
    window = [
        slice(0, n * step, step) if step > 0 else slice((n - 1) * -step, None, step)
        for n, step in zip(shape, layout.steps, strict=True)
    ]
    return Placed(view[(*window, ...)], memory)


def fill(placed: Array, values: Array) -> None:
    """Write numbers into an array of any of the types."""
    if placed.dtype == np.uint16:
        placed[...] = to_bf16(values)
    else:
        placed[...] = values


def to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16, to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def wide(array: Array) -> npt.NDArray[np.float64]:
    """What an array of float32, float16, bfloat16 bits or bool means."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)
