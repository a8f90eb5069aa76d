"""Puts a weight into the order in which the engine's convolution reads it, once for all readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgeadapt.runtime.plan.ir import Op, Program, Tensor

_SAME = ("kernel", "strides", "pads", "dilations", "group", "transposed", "out_channels")
_CHOSEN = ("compute", "algorithm")


def pack(program: Program, packed_elements: Callable[[Op, Program], int]) -> Program:
    """Insert a `pack_weights` before the first convolution that needs it.

    A weight that several scales share is packed once. ``packed_elements`` says how many float32
    the engine's order of the weight takes.
    """
    packed: dict[tuple[Any, ...], str] = {}
    tensors = dict(program.tensors)
    ops: list[Op] = []
    for op in program.ops:
        if op.kind != "conv":
            ops.append(op)
            continue
        key = _key(op)
        if key not in packed:
            name = f"{op.inputs['weight']}..packed{len(packed)}"
            packed[key] = name
            tensors[name] = Tensor(name, (packed_elements(op, program),))
            ops.append(_pack_op(op, name))
        ops.append(op.with_inputs(weight=packed[key]))
    return replace(program, tensors=tensors, ops=tuple(ops))


def _key(op: Op) -> tuple[Any, ...]:
    return (
        op.inputs["weight"],
        *(op.attributes.get(name) for name in _CHOSEN),
        *(op.attributes[name] for name in _SAME),
    )


def _pack_op(op: Op, name: str) -> Op:
    attributes = {key: op.attributes[key] for key in _SAME}
    attributes |= {key: op.attributes[key] for key in _CHOSEN if key in op.attributes}
    return Op("pack_weights", {"weight": op.inputs["weight"]}, {"y": name}, attributes, op.origin)
