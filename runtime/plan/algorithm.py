"""Which algorithm computes each convolution."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.kernels.conv import Vectors, choose_algorithm
from edgeadapt.runtime.plan.bind import conv_channels, conv_spec
from edgeadapt.runtime.plan.ir import Op, Program


def choose_algorithms(program: Program, vectors: Vectors) -> Program:
    """Note at every convolution how it is computed fastest on a level's vectors."""
    return replace(program, ops=tuple(_choose(op, program, vectors) for op in program.ops))


def _choose(op: Op, program: Program, vectors: Vectors) -> Op:
    if op.kind != "conv":
        return op
    _, outputs, height, width = program.tensors[op.outputs["y"]].shape
    inputs = conv_channels(op, program)
    spec = choose_algorithm(conv_spec(op), inputs, outputs, (height, width), vectors)
    return op.with_attributes(algorithm=spec.algorithm, compute=spec.compute)
