"""Brings all weights into the order in which convolutions read them, in one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgeadapt.runtime.plan.ir import BYTES, Dtype, Op, Program, Tensor, View
from edgeadapt.runtime.plan.lifetimes import ALIGNMENT

_SAME = ("kernel", "strides", "pads", "dilations", "group", "transposed", "out_channels")
_DTYPES: dict[str, Dtype] = {"f32": "f32", "tf32": "f32", "bf16": "bf16", "f16": "f16"}

# How many elements the packed weights of a convolution take.
PackedElements = Callable[[Op, Program], int]


def pack_together(program: Program, packed_elements: PackedElements) -> Program:
    """Put one `pack_together` in front of everything, and let convolutions read parts of it.

    A weight that several scales share, in the same way, is packed once. One that is no parameter,
    because the program computes it or it is a constant, is packed before its first reader.
    """
    firsts: dict[tuple[Any, ...], Op] = {}
    for op in program.ops:
        if op.kind == "conv":
            firsts.setdefault(_key(op), op)
    parameters = [
        op
        for op in firsts.values()
        if program.tensors[program.base(op.inputs["weight"])].storage == "weights"
    ]
    tensors = dict(program.tensors)
    names: dict[tuple[Any, ...], str] = {}
    ops = []
    if parameters:
        ops.append(_packing(program, parameters, packed_elements, tensors, names))
    for op in program.ops:
        if op.kind == "conv":
            if _key(op) not in names:
                ops.append(_packing(program, [op], packed_elements, tensors, names))
            op = op.with_inputs(weight=names[_key(op)])  # noqa: PLW2901
        ops.append(op)
    return replace(program, tensors=tensors, ops=tuple(ops))


def _packing(
    program: Program,
    convs: Sequence[Op],
    packed_elements: PackedElements,
    tensors: dict[str, Tensor],
    names: dict[tuple[Any, ...], str],
) -> Op:
    """The operation that packs the weights of ``convs``; adds tensors, and their names by key."""
    dtype = _DTYPES[convs[0].attributes.get("compute", "f32")]
    whole, step = f"packed..{len(names)}", ALIGNMENT // BYTES[dtype]
    inputs: dict[str, str] = {}
    parts: list[dict[str, Any]] = []
    offset = 0
    for number, op in enumerate(convs):
        weight, count = op.inputs["weight"], packed_elements(op, program)
        inputs[f"weight{number}"] = weight
        placed = {"offset": offset, "count": count}
        if "algorithm" in op.attributes:
            placed["algorithm"] = op.attributes["algorithm"]
        parts.append({name: op.attributes[name] for name in _SAME} | placed)
        name = f"{weight}..packed{len(names)}"
        tensors[name] = Tensor(name, (count,), dtype, view=View(whole, offset, (1,)))
        names[_key(op)] = name
        offset += -(-count // step) * step
    tensors[whole] = Tensor(whole, (offset,), dtype)
    origin = f"{len(parts)} orders of weights"
    return Op("pack_together", inputs, {"y": whole}, {"parts": tuple(parts)}, origin)


def _key(op: Op) -> tuple[Any, ...]:
    """What must be the same for two convolutions to read the same packed weights."""
    same = (op.attributes[name] for name in _SAME)
    return op.inputs["weight"], op.attributes.get("algorithm"), *same
