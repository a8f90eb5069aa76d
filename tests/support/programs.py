"""Programs made by hand, for the tests of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeadapt.runtime.plan.ir import Dtype, Op, Program, Shape, Tensor, View, contiguous

PLAIN = {
    "kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1,
    "transposed": False, "slope": None, "mask_slope": None, "out_channels": None,
}  # fmt: skip
WINDOW = ("kernel", "strides", "pads", "dilations", "group")


class Builder:
    """Collects tensors and operations; every method returns the name of what it added."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.constants: dict[str, Any] = {}
        self._taken = {"weights": 0, "gradients": 0}

    def tensor(
        self, name: str, shape: Sequence[int], dtype: Dtype = "f32", storage: Any = "arena"
    ) -> str:
        """A tensor of its own; weights and gradients one behind the other in their flat array."""
        tensor = Tensor(name, tuple(shape), dtype, storage, None, self._taken.get(storage, 0))
        if storage in self._taken:
            self._taken[storage] += tensor.size
        self.tensors[name] = tensor
        return name

    def same_place(self, name: str, other: str) -> str:
        """Another value at the place of ``other``."""
        old = self.tensors[other]
        self.tensors[name] = Tensor(name, old.shape, old.dtype, old.storage, None, old.offset)
        return name

    def view(self, name: str, base: str, shape: Shape, offset: int = 0, strides: Any = None) -> str:
        """A tensor within ``base``; contiguous unless it says otherwise."""
        old = self.tensors[base]
        view = View(base, offset, tuple(strides or contiguous(tuple(shape))))
        self.tensors[name] = Tensor(name, tuple(shape), old.dtype, old.storage, view)
        return name

    def constant(self, name: str, value: Any) -> str:
        """A constant of the graph."""
        self.constants[name] = value
        return self.tensor(name, value.shape, storage="constant")

    def op(self, kind: str, inputs: dict[str, str], outputs: dict[str, str], **at: Any) -> str:
        """An operation; returns its first output."""
        self.ops.append(Op(kind, inputs, outputs, at, f"{kind} {len(self.ops)}"))
        return next(iter(outputs.values()))

    def conv(self, x: str, weight: str, y: str, inputs: dict[str, str], **at: Any) -> str:
        """A convolution, 3x3 with padding 1 unless it says otherwise."""
        return self.op("conv", {"x0": x, "weight": weight, **inputs}, {"y": y}, **{**PLAIN, **at})

    def pointwise(self, y: str, expression: Any, *inputs: str) -> str:
        """An elementwise operation."""
        roles = {f"x{i}": name for i, name in enumerate(inputs)}
        return self.op("pointwise", roles, {"y": y}, expression=expression)

    def program(self, *outputs: str) -> Program:
        """What was collected."""
        return Program(self.tensors, tuple(self.ops), outputs, self.constants)
