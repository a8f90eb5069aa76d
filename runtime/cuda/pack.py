"""Brings all weights into the order in which convolutions read them, in one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgeadapt.runtime.plan.ir import BYTES, Dtype, Op, Program, Tensor, View
from edgeadapt.runtime.plan.lifetimes import ALIGNMENT

_SAME = ("kernel", "strides", "pads", "dilations", "group", "transposed", "out_channels")
_BIASES = "packed..biases"
LIBRARY_ALIGNMENT = 16  # bytes: what cuDNN's frontend promises of every tensor
_DTYPES: dict[str, Dtype] = {"f32": "f32", "tf32": "f32", "bf16": "bf16", "f16": "f16"}

# How many elements the packed weights of a convolution take.
PackedElements = Callable[[Op, Program], int]


def pack_together(program: Program, packed_elements: PackedElements) -> Program:
    """Put one `pack_together` in front of everything, and let convolutions read parts of it.

    A weight that several scales share, in the same way, is packed once. One that is no parameter,
    because the program computes it or it is a constant, is packed before its first reader. Biases
    that a library cannot read where they are come together in a second `pack_together`.
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
    biases = _misplaced_biases(program)
    if biases:
        ops.append(_copying(program, biases, tensors))
    for op in program.ops:
        if op.kind == "conv":
            if _key(op) not in names:
                ops.append(_packing(program, [op], packed_elements, tensors, names))
            op = op.with_inputs(weight=names[_key(op)])  # noqa: PLW2901
            if _is_librarys(op) and op.inputs.get("bias") in biases:
                op = op.with_inputs(bias=_copied(op.inputs["bias"]))  # noqa: PLW2901
        ops.append(op)
    return replace(program, tensors=tensors, ops=tuple(ops))


def _misplaced_biases(program: Program) -> list[str]:
    """Parameters that a library is to read and that do not begin at as many bytes as it wants."""
    biases = [op.inputs["bias"] for op in program.ops if _is_librarys(op) and "bias" in op.inputs]
    return [
        name
        for name in dict.fromkeys(biases)
        if program.tensors[name].storage == "weights"
        and program.tensors[name].offset * BYTES["f32"] % LIBRARY_ALIGNMENT
    ]


def _is_librarys(op: Op) -> bool:
    return op.kind == "conv" and op.attributes.get("algorithm") == "cudnn"


def _copied(bias: str) -> str:
    return f"{bias}..aligned"


def _copying(program: Program, biases: Sequence[str], tensors: dict[str, Tensor]) -> Op:
    """The operation that copies biases, as the weights of so many outputs; adds tensors."""
    same = dict.fromkeys(("kernel", "strides", "dilations"), (1, 1))
    at = {**same, "pads": (0, 0, 0, 0), "group": 1, "transposed": False, "algorithm": "cudnn"}
    inputs: dict[str, str] = {}
    parts: list[dict[str, Any]] = []
    offset, step = 0, ALIGNMENT // BYTES["f32"]
    for number, name in enumerate(biases):
        count, as_weight = program.tensors[name].size, f"{name}..weight"
        shape = (count, 1, 1, 1)
        view = View(name, 0, (1, 1, 1, 1))
        tensors[as_weight] = Tensor(as_weight, shape, storage="weights", view=view)
        tensors[_copied(name)] = Tensor(_copied(name), (count,), view=View(_BIASES, offset, (1,)))
        inputs[f"weight{number}"] = as_weight
        parts.append({**at, "out_channels": (0, count), "offset": offset, "count": count})
        offset += -(-count // step) * step
    tensors[_BIASES] = Tensor(_BIASES, (offset,))
    origin = f"{len(parts)} biases"
    return Op("pack_together", inputs, {"y": _BIASES}, {"parts": tuple(parts)}, origin)


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
