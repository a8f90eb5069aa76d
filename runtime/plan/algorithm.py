"""Which algorithm computes each convolution."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.runtime.plan.ir import Op, Program


def choose_algorithms(program: Program) -> Program:
    """Winograd's algorithm where it is the faster one; the direct one elsewhere.

    It needs 16 products where the direct one needs 36, and transforms its input and output for
    that: the more channels share a transform, the better.
    """
    ops = tuple(
        op.with_attributes(algorithm="winograd") if _winograd_is_faster(op, program) else op
        for op in program.ops
    )
    return replace(program, ops=ops)


def _winograd_is_faster(op: Op, program: Program) -> bool:
    if op.kind != "conv" or op.attributes.get("compute", "f32") != "f32":
        return False
    found = op.attributes
    if (*found["kernel"], *found["strides"], *found["dilations"], found["group"]) != _FITS:
        return False
    sources = (op.inputs[role] for role in ("x0", "x1", "x2", "x3") if role in op.inputs)
    inputs = sum(program.tensors[name].shape[1] for name in sources)
    _, outputs, height, width = program.tensors[op.outputs["y"]].shape
    return inputs >= 8 and outputs >= 8 and height >= 8 and width >= 32


_FITS = (3, 3, 1, 1, 1, 1, 1)  # kernel, strides, dilations, group
