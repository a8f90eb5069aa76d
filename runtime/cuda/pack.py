"""Brings all weights into the order in which convolutions read them, in one operation."""

from __future__ import annotations

from collections.abc import Callable
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

    A weight that several scales share, in the same way, is packed once.
    """
    convs = [op for op in program.ops if op.kind == "conv"]
    if not convs:
        return program
    dtype = _DTYPES[convs[0].attributes.get("compute", "f32")]
    parts: dict[tuple[Any, ...], dict[str, Any]] = {}
    tensors = dict(program.tensors)
    offset, step = 0, ALIGNMENT // BYTES[dtype]
    for op in convs:
        weight, key = op.inputs["weight"], _key(op)
        if key not in parts:
            count = packed_elements(op, program)
            parts[key] = {name: op.attributes[name] for name in _SAME}
            parts[key] |= {"weight": weight, "offset": offset, "count": count}
            offset += -(-count // step) * step
    whole = Tensor("packed..weights", (offset,), dtype)
    tensors[whole.name] = whole
    names = {}
    for number, (key, part) in enumerate(parts.items()):
        names[key] = f"{part['weight']}..packed{number}"
        view = View(whole.name, part["offset"], (1,))
        tensors[names[key]] = Tensor(names[key], (part["count"],), dtype, view=view)
    inputs = {f"weight{n}": part.pop("weight") for n, part in enumerate(parts.values())}
    origin = f"{len(parts)} orders of weights"
    at = {"parts": tuple(parts.values())}
    packing = Op("pack_together", inputs, {"y": whole.name}, at, origin)
    ops = [
        op.with_inputs(weight=names[_key(op)]) if op.kind == "conv" else op for op in program.ops
    ]
    return replace(program, tensors=tensors, ops=(packing, *ops))


def _key(op: Op) -> tuple[Any, ...]:
    """What must be the same for two convolutions to read the same packed weights."""
    return op.inputs["weight"], *(op.attributes[name] for name in _SAME)
