"""Runs a `Program` in float64: what an engine's results, and every stage of the plan, are held to.

Memory is honest: views read and write their base, tensors of the session at the same place of the
same flat array share it, everything starts as NaN. With the offsets of a memory plan the arena is
shared too, so that a plan which gives away memory too early shows in the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeadapt.runtime.plan.ir import BYTES, Op, Program, Tensor
from support.interpret_kinds import COMPUTE, packed_part

Array = npt.NDArray[Any]


def run(
    program: Program,
    image: Array,
    weights: Mapping[str, Array],
    offsets: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """The outputs of ``program`` by name, float64, each in its shape; a bool is 0 or 1.

    ``weights`` are by name of the tensor. ``offsets`` (bytes in the arena, by base tensor) lets
    tensors share memory as a memory plan has it.
    """
    memory = Memory(program, image, weights, offsets)
    with _one_thread():
        for op in program.ops:
            execute(op, program, memory)
    return {name: memory.read(name) for name in program.outputs}


def execute(op: Op, program: Program, memory: Memory) -> None:
    """Read the operands of one operation, compute, write all of its results."""
    inputs = {role: torch.from_numpy(memory.read(name)) for role, name in op.inputs.items()}
    shapes = {role: program.tensors[name].shape for role, name in op.outputs.items()}
    if op.kind == "conv":
        inputs["weight"] = _unpacked(op, program, inputs["weight"])
    results = COMPUTE[op.kind](inputs, shapes, op.attributes)
    for role, name in op.outputs.items():
        found, wanted = tuple(results[role].shape), program.tensors[name].shape
        if found != wanted:
            raise ValueError(f"{op.kind} ({op.origin}): {name} is {wanted}, computed {found}")
        memory.write(name, results[role].numpy())


@contextmanager
def _one_thread() -> Iterator[None]:
    """For a program's many small operations, threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Memory:
    """Every place a program can read or write, in float64."""

    def __init__(
        self,
        program: Program,
        image: Array,
        weights: Mapping[str, Array],
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        self._tensors = program.tensors
        self._flat: dict[str, Array] = {}  # one for each storage that is a flat array
        self._own: dict[str, Array] = {}
        self._offsets = offsets
        for storage in ("weights", "gradients"):
            placed = [t for t in program.tensors.values() if t.storage == storage and not t.view]
            self._flat[storage] = _nan(max((t.offset + t.size for t in placed), default=0))
        if offsets is not None:
            ends = [end + program.tensors[name].nbytes for name, end in offsets.items()]
            self._flat["arena"] = _nan(max(ends, default=0))  # an element stands for one byte
        for tensor in program.tensors.values():
            if tensor.storage == "image" and not tensor.view:
                self.write(tensor.name, image)
        self._fill("constant", program.constants)
        self._fill("weights", weights)

    def read(self, name: str) -> Array:
        """The values of a tensor, copied."""
        return self._place(name).copy()

    def write(self, name: str, values: Array) -> None:
        """Set the values of a tensor."""
        self._place(name)[...] = values

    def _fill(self, storage: str, values: Mapping[str, Array]) -> None:
        for name, value in values.items():
            if name not in self._tensors:  # a parameter that this graph does not use
                continue
            if self._tensors[name].storage != storage:
                raise ValueError(f"{name} is not in {storage}")
            if storage == "weights" and not np.isnan(self.read(name)).all():
                raise ValueError(f"{name} overlaps another of the {storage}")
            self.write(name, value)

    def _place(self, name: str) -> Array:
        """A tensor as a window of the memory that it lies in."""
        tensor = self._tensors[name]
        base = self._tensors[tensor.base]
        flat, begin, unit = self._home(base)
        strides = [8 * unit * stride for stride in tensor.strides]
        inner = tensor.view.offset if tensor.view else 0
        _check_inside(tensor, base)
        start = flat[begin + inner * unit :]
        return np.lib.stride_tricks.as_strided(start, tensor.shape, strides)

    def _home(self, base: Tensor) -> tuple[Array, int, int]:
        """Array, the index in it where ``base`` begins, and how far apart its elements are."""
        if base.storage in ("weights", "gradients"):
            return self._flat[base.storage], base.offset, 1
        if base.storage == "arena" and self._offsets is not None:
            return self._flat["arena"], self._offsets[base.name], BYTES[base.dtype]
        if base.name not in self._own:
            self._own[base.name] = _nan(base.size)
        return self._own[base.name], 0, 1


def _check_inside(tensor: Tensor, base: Tensor) -> None:
    """A view that leaves its base would read and write a neighbour."""
    if tensor.view is None or 0 in tensor.shape:
        return
    reach = [(n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    first = tensor.view.offset + sum(min(r, 0) for r in reach)
    last = tensor.view.offset + sum(max(r, 0) for r in reach)
    if base.view is not None or first < 0 or last >= base.size:
        raise ValueError(f"{tensor.name} is not within {base.name}: {first} to {last}")


def _unpacked(op: Op, program: Program, weight: torch.Tensor) -> torch.Tensor:
    """The weight a conv reads; if it was packed, in the shape it has in the graph."""
    name = op.inputs["weight"]
    for parameter, attributes in packings(program, name):
        original = torch.empty(program.tensors[parameter].shape)
        shape = packed_part(original, attributes).shape
        return weight.reshape(-1)[: shape.numel()].reshape(shape)
    return weight


def packings(program: Program, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parameter that ``name`` is the packed form of, and how it was packed."""
    tensor = program.tensors[name]
    for op in program.ops:
        if op.outputs.get("y") != tensor.base:
            continue
        if op.kind == "pack_weights":
            yield op.inputs["weight"], op.attributes
        for number, part in enumerate(op.attributes.get("parts", ())):
            if tensor.view and tensor.view.offset == part["offset"]:
                yield op.inputs[f"weight{number}"], part


def _nan(size: int) -> Array:
    return np.full(size, np.nan)
