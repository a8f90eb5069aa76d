"""Who has written what of the memory that a program's tensors name, while `check` walks through.

Places are those of the tensors themselves: one base, or one flat array of the session. That the
arena gives memory away is a later stage's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.runtime.plan.ir import Op, Program, Tensor
from edgeadapt.runtime.plan.shapes import reach

Mask = npt.NDArray[np.bool_]
Region = tuple[str, int, tuple[int, ...], tuple[int, ...]]  # memory, offset, shape, strides

# Results that take the place of an operand: sums go on where they lie.
_SAME_PLACE: Mapping[tuple[str, str], str] = {
    ("conv_weight_grad", "weight"): "sum_weight",
    ("conv_weight_grad", "bias"): "sum_bias",
    ("update_sgd", "weight_new"): "weight",
    ("update_together", "weight_new"): "weight",
}


@dataclass
class _Memory:
    """One base or flat array; a mask only where it is not written as a whole."""

    size: int
    full: bool = False
    mask: Mask | None = None
    values: list[str] = field(default_factory=list)  # names under which it was written

    def part(self, region: Region) -> Any:
        if self.mask is None:
            self.mask = np.full(self.size, self.full)
        _, offset, shape, strides = region
        return np.lib.stride_tricks.as_strided(self.mask[offset:], shape, strides)


class Written:
    """What has been written; ``stale`` are tensors that another value has replaced."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.stale: set[str] = set()
        self._memories: dict[str, _Memory] = {}
        for tensor in program.tensors.values():
            if tensor.view is None:
                memory = self._memories.setdefault(_memory(tensor), _Memory(0))
                memory.size = max(memory.size, tensor.offset + tensor.size)
                memory.full = tensor.storage == "weights"

    def has(self, name: str) -> bool:
        """Whether every element of the tensor has a value."""
        region = self._region(name)
        memory = self._memories[region[0]]
        if memory.mask is None or not self._program.tensors[name].size:
            return memory.full or not self._program.tensors[name].size
        return bool(memory.part(region).all())

    def write(self, op: Op, role: str) -> None:
        """Note that ``op`` writes its output ``role``.

        Raises:
            ValueError: if what it writes has a value already, or is read by it otherwise than
                element by element at the same place.
        """
        name = op.outputs[role]
        tensor, region = self._program.tensors[name], self._region(name)
        if not tensor.size:
            return
        memory = self._memories[region[0]]
        if not _is_injective(tensor):
            raise ValueError(f"{name} writes an element twice")
        if not self._continues(op, role, region):
            self._check_apart(op, name, region)
            if memory.full if memory.mask is None else memory.part(region).any():
                raise ValueError(f"{name} is written a second time")
        # The name of a base means what is in it now; other names mean the value they were written.
        for other in {*memory.values, *op.inputs.values()} - {name, tensor.base}:
            if self._overlap(self._region(other), region):
                self.stale.add(other)
        self.stale.discard(name)
        memory.values.append(name)
        if tensor.size == memory.size:  # no element twice, so each once
            memory.full, memory.mask = True, None
        else:
            memory.part(region)[...] = True

    def _continues(self, op: Op, role: str, region: Region) -> bool:
        """Whether the output goes where an operand is that the operation may replace."""
        name = role.rstrip("0123456789")
        same = _SAME_PLACE.get((op.kind, name))
        roles = list(op.inputs) if op.kind == "pointwise" else []
        if same is not None:
            roles = [same + role[len(name) :]]
        places = [self._region(op.inputs[other]) for other in roles if other in op.inputs]
        if op.kind != "pointwise" and places and places[0] != region:
            raise ValueError(f"{role} must lie where {roles[0]} does")
        others = [self._region(name) for name in op.inputs.values()]
        apart = not any(self._overlap(other, region) for other in others if other != region)
        return region in places and apart

    def _check_apart(self, op: Op, name: str, region: Region) -> None:
        for other in op.inputs.values():
            if self._overlap(self._region(other), region):
                raise ValueError(f"{name} is written where {other} is read")

    def _region(self, name: str) -> Region:
        tensor = self._program.tensors[name]
        base = self._program.tensors[tensor.base]
        offset = base.offset + (tensor.view.offset if tensor.view else 0)
        axes = [(n, s) for n, s in zip(tensor.shape, tensor.strides, strict=True) if n != 1]
        return (_memory(base), offset, tuple(n for n, _ in axes), tuple(s for _, s in axes))

    def _overlap(self, a: Region, b: Region) -> bool:
        (first, last), (begin, end) = reach(*a[1:]), reach(*b[1:])
        if a[0] != b[0] or last < begin or end < first:
            return False
        if a == b:
            return True
        scratch = _Memory(self._memories[a[0]].size)
        scratch.part(a)[...] = True
        return bool(scratch.part(b).any())


def _memory(base: Tensor) -> str:
    return base.storage if base.storage in ("weights", "gradients") else f"tensor {base.name}"


def _is_injective(tensor: Tensor) -> bool:
    """Whether no two elements share a place; axes must be nested, as all that are made here are."""
    extent = 0
    axes = zip(tensor.shape, tensor.strides, strict=True)
    for stride, n in sorted((abs(stride), n) for n, stride in axes if n != 1):
        if stride <= extent:
            return False
        extent += (n - 1) * stride
    return True
