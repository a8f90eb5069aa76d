"""Which algorithm computes each convolution."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.kernels.conv import choose_algorithm
from edgeadapt.runtime.plan.bind import conv_channels, conv_spec
from edgeadapt.runtime.plan.ir import Op, Program


def choose_algorithms(program: Program, lanes: int) -> Program:
    """Note at every convolution which algorithm is faster on vectors of ``lanes`` pixels."""
    return replace(program, ops=tuple(_choose(op, program, lanes) for op in program.ops))


def _choose(op: Op, program: Program, lanes: int) -> Op:
    if op.kind != "conv":
        return op
    _, outputs, height, width = program.tensors[op.outputs["y"]].shape
    inputs = conv_channels(op, program)
    return op.with_attributes(
        algorithm=choose_algorithm(conv_spec(op), inputs, outputs, (height, width), lanes)
    )
