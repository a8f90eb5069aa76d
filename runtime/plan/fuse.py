"""From the operations of the graph to the ones that run: every fusion, in the order they need."""

from __future__ import annotations

from collections.abc import Callable

from edgeadapt.runtime.plan import (
    fuse_clean,
    fuse_concat,
    fuse_conv,
    fuse_gradient,
    fuse_loss,
    fuse_pointwise,
    fuse_resize,
)
from edgeadapt.runtime.plan.ir import Program

Pass = Callable[[Program], Program]

PASSES: tuple[Pass, ...] = (
    fuse_clean.drop_dead,
    fuse_clean.fold_constants,
    fuse_pointwise.drop_copies,
    fuse_clean.share_equal,
    fuse_pointwise.recognise_rectifiers,
    fuse_loss.fuse_l1,  # before chains are merged: it looks for the single operations
    fuse_concat.read_parts,
    fuse_clean.drop_dead,  # concatenations that are only read in parts now
    fuse_conv.fuse_epilogues,
    fuse_conv.split_slices,  # after what needs no splitting has been fused
    fuse_conv.fuse_epilogues,
    fuse_resize.fuse_sums,  # after the convolutions, which take the longer tensors
    fuse_gradient.fuse_bias,
    fuse_gradient.accumulate,
    fuse_pointwise.fuse_before_reduce,
    fuse_pointwise.merge_chains,
    fuse_concat.write_parts,
    fuse_pointwise.drop_copies,
    fuse_clean.drop_dead,
)


def fuse(program: Program) -> Program:
    """The same program in fewer operations that move less memory; no `concat` is left."""
    for step in PASSES:
        program = step(program)
    return program
