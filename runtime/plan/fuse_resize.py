"""Resizing and its adjoints that add to a tensor instead of writing one that is added later."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.runtime.plan.edit import Edit, Key
from edgeadapt.runtime.plan.expressions import sum_of
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.shapes import is_plane

KINDS = ("resize", "resize_grad", "avg_pool_grad")


def fuse_sums(program: Program) -> Program:
    """Let a resize, its adjoint or that of average pooling add the tensor its result is added to.

    Fires when the sum is the only reader of the result and the other term exists before. Must not
    fire when the result is an output or read elsewhere too, when the other term is computed later,
    is the result itself, or is no plane of the same shape.
    """
    edit = Edit(program)
    for key in edit.keys(*KINDS):
        _fuse(edit, key)
    return edit.program()


def _fuse(edit: Edit, key: Key) -> None:
    op = edit.ops[key]
    y = op.outputs["y"]
    reader = edit.sole_reader(y)
    terms = sum_of(edit.ops[reader]) if reader else None
    if reader is None or terms is None or "add" in op.inputs or y not in terms:
        return
    other = terms[1] if terms[0] == y else terms[0]
    tensor = edit.tensors[other]
    if edit.producer(y) != key or not edit.is_before(other, key):
        return
    if not is_plane(tensor) or tensor.shape != edit.tensors[y].shape or tensor.dtype == "bool":
        return
    follower = edit.ops[reader]
    fused = replace(op.with_inputs(add=other), outputs=follower.outputs)
    edit.drop(reader)
    edit.put(key, replace(fused, origin=f"{op.origin}, {follower.origin}"))
