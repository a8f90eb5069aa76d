"""A device made of host memory: arrays that are watched, and work that is run on them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.cuda.launch import Launch, Work
from support.cuda_host import run_on_host
from support.guarded import PATTERN, Guards
from support.strided import Layout, Placed, fill, place

Array = npt.NDArray[Any]
ALIGNMENT = 256  # of memory that a GPU hands out
_NHWC = (0, 2, 3, 1)


class HostDevice:
    """Makes arrays and runs work on them; ``guards`` watches the memory around."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self._placed: list[Placed] = []

    def array(
        self,
        shape: tuple[int, ...],
        layout: str | Layout = "nhwc",
        dtype: str = "f32",
        fill: npt.ArrayLike | None = None,
    ) -> Array:
        """See `MakeGuarded` in tests/kernels/cuda/conftest.py."""
        if isinstance(layout, str):
            layout = _layout(layout, len(shape))
        placed = place(self.guards, shape, dtype, layout)
        if fill is not None:
            _fill(placed.view, np.asarray(fill))
        self._placed.append(placed)
        return placed.view

    def run(self, make: Callable[[int], Work]) -> None:
        """See `RunWork` in tests/kernels/cuda/conftest.py."""
        asked = make(0).scratch_bytes
        memory = self.guards.empty((asked + ALIGNMENT,), np.uint8)
        memory = memory[-memory.ctypes.data % ALIGNMENT :][:asked]
        work = make(memory.ctypes.data if asked else 0)
        assert work.scratch_bytes == asked, "the size of scratch memory depends on its address"
        before = self._contents()
        self._run(work, backward=False)
        after = self._contents()
        self._restore(before)
        memory[...] = PATTERN
        self._run(work, backward=True)
        for one, other in zip(after, self._contents(), strict=True):
            assert one == other, (
                "results depend on the order of threads or blocks: is a barrier missing, or does "
                "a thread read what another one writes?"
            )

    def _run(self, work: Work, backward: bool) -> None:
        for launch in work.launches:
            self._check_addresses(launch)
            run_on_host(launch, backward)
            self.guards.check()
            self._check_gaps(launch)

    def _check_addresses(self, launch: Launch) -> None:
        for name, address in addresses(launch.arguments):
            inside = any(b.start <= address <= b.start + b.size for b in self.guards.blocks)
            assert inside, f"{launch.kernel}: {name} points to no array of this test"

    def _check_gaps(self, launch: Launch) -> None:
        for placed in self._placed:
            if placed.view.size == placed.memory.size:
                continue
            values = placed.view.copy()
            untouched = placed.surroundings_are_untouched()
            placed.view[...] = values
            assert untouched, f"{launch.kernel} wrote between the pixels of an array"

    def _contents(self) -> list[bytes]:
        return [placed.memory.tobytes() for placed in self._placed]

    def _restore(self, contents: list[bytes]) -> None:
        for placed, values in zip(self._placed, contents, strict=True):
            placed.memory.reshape(-1).view(np.uint8)[...] = np.frombuffer(values, np.uint8)


def _layout(name: str, rank: int) -> Layout:
    order = _NHWC if rank == 4 and name != "nchw" else tuple(range(rank))
    if name not in ("nhwc", "nchw", "strided"):
        raise ValueError(f"no layout {name!r}")
    margins = [0] * rank
    if name == "strided":
        for axis in order[-2:]:
            margins[axis] = 3
        # An odd offset, too: no load of several elements is aligned by accident.
        return Layout(order, (1,) * rank, tuple(margins), 1)
    return Layout(order, (1,) * rank, tuple(margins))


def _fill(view: Array, values: Array) -> None:
    if view.dtype == np.uint16 and values.dtype == np.uint16:
        view[...] = values  # bits already
    else:
        fill(view, np.broadcast_to(values, view.shape))


def addresses(arguments: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every pointer in a structure that is not null."""
    for field, kind, *_ in arguments._fields_:
        value, path = getattr(arguments, field), f"{name}{field}"
        if isinstance(value, ctypes.Structure):
            yield from addresses(value, f"{path}.")
        elif isinstance(value, ctypes.Array):
            for i, item in enumerate(value):
                if isinstance(item, ctypes.Structure):
                    yield from addresses(item, f"{path}[{i}].")
                elif kind._type_ is ctypes.c_void_p and item:
                    yield f"{path}[{i}]", item
        elif kind is ctypes.c_void_p and value:
            yield path, value
