"""Collects the tensors and operations of a program while its graph is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.runtime.plan.ir import Dtype, Op, Program, Shape, Tensor, View, contiguous
from edgeadapt.runtime.plan.kinds import MAX_RANK
from edgeadapt.runtime.plan.shapes import expanded, is_contiguous, is_plane

Array = npt.NDArray[Any]
# What a name of the graph stands for: an array that is known while reading, or a tensor.
Value = Array | Tensor

_SMALL = 1 << 16  # elements: constants above this are repeated by strides, never written out


class NoRuleError(Exception):
    """The graph asks for something that the native engine does not have; the text says what."""


class Builder:
    """Tensors are added by name; views of one place are one tensor."""

    def __init__(self, places: Mapping[str, Tensor]) -> None:
        """``places``: tensors of the session, which the operation of their name writes."""
        self._places = places
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.constants: dict[str, Array] = {}
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Add a tensor whose name is new."""
        assert tensor.name not in self.tensors, tensor.name
        self.tensors[tensor.name] = tensor
        return tensor

    def result(self, name: str, shape: Shape, dtype: Dtype = "f32") -> Tensor:
        """A tensor for the result ``name`` of an operation, in its place if it has one."""
        place = self._places.get(name)
        if place is None:
            return self.add(Tensor(self.fresh(name), shape, dtype))
        if place.shape != shape or place.dtype != dtype:
            raise NoRuleError(f"giving {dtype} {shape} for {name}, which is {place.shape}")
        return self.add(place)

    def fresh(self, name: str) -> str:
        """``name``, or one like it that no tensor has."""
        candidate, number = name, 1
        while candidate in self.tensors:
            number += 1
            candidate = f"{name}..{number}"
        return candidate

    def emit(
        self,
        kind: str,
        inputs: Mapping[str, Tensor],
        y: Tensor,
        origin: str,
        role: str = "y",
        **attributes: Any,
    ) -> None:
        """Add the operation that writes ``y``, in the role that it has."""
        rank = max(len(tensor.shape) for tensor in (*inputs.values(), y))
        if rank > MAX_RANK:
            raise NoRuleError(f"with {rank} axes, where {MAX_RANK} is the most")
        roles = {name: tensor.name for name, tensor in inputs.items()}
        self.ops.append(Op(kind, roles, {role: y.name}, attributes, origin))

    def view(self, x: Tensor, shape: Shape, strides: Shape, skip: int = 0) -> Tensor:
        """Elements of ``x`` in its own memory: from its first plus ``skip``, by ``strides``."""
        base = self.tensors[x.base]
        offset = (x.view.offset if x.view else 0) + skip
        if shape == base.shape and strides == contiguous(shape) and not offset:
            return base
        key = (base.name, offset, shape, strides)
        if key not in self._known:
            name = self.fresh(f"{base.name}..view")
            view = View(base.name, offset, strides)
            self._known[key] = self.add(replace(base, name=name, shape=shape, view=view, offset=0))
        return self._known[key]

    def expand(self, value: Value, shape: Shape) -> Tensor:
        """``value`` as a tensor, repeated to ``shape``."""
        x = self.tensor(value)
        return x if x.shape == shape else self.view(x, shape, expanded(x.shape, x.strides, shape))

    def entry(self, x: Tensor, index: int) -> Tensor:
        """``x[index : index + 1]``."""
        shape = (1, *x.shape[1:])
        if shape == x.shape:
            return x
        return self.view(x, shape, x.strides, index * x.strides[0])

    def copy(self, x: Tensor, name: str, shape: Shape | None = None) -> Tensor:
        """A contiguous copy of ``x``, under ``name``; ``shape`` arranges its elements anew."""
        whole = self.result(name, x.shape if shape is None else shape, x.dtype)
        y = self.view(whole, x.shape, contiguous(x.shape))
        self.emit("pointwise", {"x0": x}, y, f"copy {name}", expression=(("copy", (("x", 0),)),))
        return whole

    def dense(self, value: Value) -> Tensor:
        """``value`` as a contiguous tensor, copied if it is not."""
        if isinstance(value, np.ndarray) and value.size <= _SMALL:
            value = np.ascontiguousarray(value).reshape(value.shape)
        x = self.tensor(value)
        return x if is_contiguous(x) else self._copied(x)

    def plane(self, value: Value) -> Tensor:
        """``value`` as (1, C, H, W) with contiguous rows, copied if they are not."""
        shape = value.shape
        if len(shape) != 4 or shape[0] != 1:
            raise NoRuleError(f"of {tuple(shape)}, where it takes (1, C, H, W)")
        x = self.tensor(value)
        if isinstance(value, np.ndarray) and not is_plane(x):
            x = self.dense(value)
        return x if is_plane(x) else self._copied(x)

    def _copied(self, x: Tensor) -> Tensor:
        key = ("copy", x.name)
        if key not in self._known:
            self._known[key] = self.copy(x, self.fresh(f"{x.base}..copy"))
        return self._known[key]

    def tensor(self, value: Value) -> Tensor:
        """``value`` as a tensor; of an array that repeats itself, one repetition is stored."""
        if isinstance(value, Tensor):
            return value
        shape: Shape = value.shape
        once = value[tuple(slice(0, 1 if s == 0 else None) for s in value.strides)]
        dtype: Dtype = "bool" if once.dtype == np.bool_ else "f32"
        stored = np.array(once, np.bool_ if dtype == "bool" else np.float32, order="C")
        key = ("constant", dtype, stored.shape, stored.tobytes())
        if key not in self._known:
            name = self.fresh(f"constant..{len(self.constants)}")
            self.constants[name] = stored
            self._known[key] = self.add(Tensor(name, stored.shape, dtype, "constant"))
        return self.expand(self._known[key], shape)

    def program(self, outputs: tuple[str, ...]) -> Program:
        """What is needed for ``outputs`` of all that was collected."""
        needed = {self.tensors[name].base for name in outputs}
        kept: list[Op] = []
        for op in reversed(self.ops):  # they can run in the order in which they were added
            if any(self.tensors[name].base in needed for name in op.outputs.values()):
                kept.append(op)
                needed |= {self.tensors[name].base for name in op.inputs.values()}
        used = needed | {n for op in kept for n in (*op.inputs.values(), *op.outputs.values())}
        return Program(
            {name: tensor for name, tensor in self.tensors.items() if name in used},
            tuple(reversed(kept)),
            outputs,
            {name: array for name, array in self.constants.items() if name in used},
        )
