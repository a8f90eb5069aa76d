"""What the native engine's kernels do for an operation, in amounts of which time is made.

A roofline knows two amounts, arithmetic and traffic, and takes the longer one's time. Kernels here
do more than that one after the other: they copy or transform what they read into working memory,
multiply by an algorithm that may need fewer products than the definition, and write. The time of an
operation is taken to be the sum of its amounts, each divided by a rate that was measured for the
class of the operation (`edgeadapt.runtime.profile.calibrate`).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from edgeadapt.runtime.plan.cost import traffic
from edgeadapt.runtime.plan.ir import Op, Program, Tensor

# What an operation of any class is made of, in this order; a class need not have all.
AMOUNTS = ("products", "elements in", "elements out", "fused operands", "bytes from memory", "call")
_SQUARE, _PRODUCTS = 4, 36  # Winograd's F(4x4, 3x3): outputs along a side, products of a square
_FUSED = ("add0", "add1", "post", "mask")


class Work(NamedTuple):
    """The class of an operation, whose rates it shares, and its amounts."""

    kind: str
    amounts: tuple[float, ...]  # as AMOUNTS


def work_of(op: Op, program: Program, lanes: int, memory_bytes: int) -> Work:
    """The work of an operation on vectors of ``lanes`` float32.

    ``memory_bytes`` is how much of its operands comes from memory, not from a cache.
    """
    rule = {"conv": _conv, "conv_weight_grad": _weight_grad}.get(op.kind, _other)
    kind, amounts = rule(op, program, lanes)
    return Work(kind, (*amounts, float(memory_bytes), 1.0))


def _conv(op: Op, program: Program, lanes: int) -> tuple[str, tuple[float, ...]]:
    found, y = op.attributes, program.tensors[op.outputs["y"]]
    sources = _sources(op, program)
    inputs = sum(x.shape[1] for x in sources)
    outputs, height, width = y.shape[1:]
    fused = float(sum(role in op.inputs for role in _FUSED) * y.size)
    algorithm, compute = found.get("algorithm", "direct"), found.get("compute", "f32")
    kind = f"{algorithm} convolution, {compute}, of {sources[0].dtype}"
    if algorithm == "winograd":
        squares = _blocks(height, _SQUARE) * _blocks(width, _SQUARE * lanes) * lanes
        pixels = squares * _SQUARE**2
        amounts = (squares * _PRODUCTS * inputs * outputs, pixels * inputs, pixels * outputs, fused)
        return kind, tuple(map(float, amounts))
    taps, phases = prod(found["kernel"]) / found["group"], 1
    if found["transposed"]:  # each phase of the output sees its own taps
        phases = found["strides"][1]
        taps /= prod(found["strides"])
    pixels = height * _blocks(_blocks(width, phases), lanes) * lanes * phases
    read = sum(x.size for x in sources)
    return kind, (float(pixels * taps * inputs * outputs), float(read), pixels * outputs, fused)


def _weight_grad(op: Op, program: Program, lanes: int) -> tuple[str, tuple[float, ...]]:
    found, grad_y = op.attributes, program.tensors[op.inputs["grad_y"]]
    weight, sources = program.tensors[op.outputs["weight"]], _sources(op, program)
    compute, strides = found.get("compute", "f32"), set(found["strides"])
    rows = found["kernel"][0] == 3 and strides == {1} and compute == "f32"  # Winograd, one axis
    kind = f"weight gradient{' by rows of three' if rows else ''}, {compute}"
    pixels = grad_y.shape[2] * _blocks(grad_y.shape[3], lanes) * lanes
    read = sum(x.size for x in sources)
    kept = grad_y.shape[1] * pixels
    # What is fused with it are the sums of each weight, over several blocks of the image.
    return kind, (float(weight.size * pixels), float(read), float(kept), float(weight.size))


def _other(op: Op, program: Program, lanes: int) -> tuple[str, tuple[float, ...]]:
    kind = "packing of weights" if op.kind == "pack_weights" else "elementwise"
    return kind, (0.0, float(traffic(op, program)), 0.0, 0.0)


def _sources(op: Op, program: Program) -> list[Tensor]:
    roles = ("x0", "x1", "x2", "x3")
    return [program.tensors[op.inputs[role]] for role in roles if role in op.inputs]


def _blocks(count: int, size: int) -> int:
    return -(-count // size)
