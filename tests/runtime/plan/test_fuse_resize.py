"""Resizing and its adjoints add to what their result would be added to."""

from __future__ import annotations

import pytest

from edgeadapt.runtime.plan.fuse_resize import fuse_sums
from support.fusing import assert_same, kinds, only
from support.programs import Builder

ADD = (("add", (("x", 0), ("x", 1))),)
SMALL, LARGE = (1, 2, 4, 3), (1, 2, 8, 6)
CASES = {
    "resize": ("x", SMALL, LARGE, {"mode": "linear", "scale": 2}),
    "resize_grad": ("grad_y", LARGE, SMALL, {"mode": "nearest", "scale": 2}),
    "avg_pool_grad": (
        "grad_y",
        SMALL,
        LARGE,
        {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)},
    ),
}


def resized(kind: str) -> Builder:
    """y, and tensors of its shape: "in1" given, "s" and "r" to be written."""
    role, before, after, at = CASES[kind]
    b = Builder()
    b.tensor("x", before, storage="weights")
    b.tensor("in1", after, storage="weights")
    for name in ("y", "s", "r"):
        b.tensor(name, after)
    b.op(kind, {role: "x"}, {"y": "y"}, **at)
    return b


@pytest.mark.parametrize("kind", CASES)
def test_the_sum_is_fused(kind: str):
    b = resized(kind)
    b.pointwise("r", ADD, "in1", "y")
    fused = assert_same(b.program("r"), fuse_sums(b.program("r")))
    assert kinds(fused) == {kind: 1}
    assert only(fused, kind).inputs["add"] == "in1"


@pytest.mark.parametrize("kind", CASES)
def test_only_one_term_is_taken(kind: str):
    b = resized(kind)
    b.pointwise("s", ADD, "y", "in1")
    b.pointwise("r", ADD, "s", "in1")
    fused = assert_same(b.program("r"), fuse_sums(b.program("r")))
    assert kinds(fused) == {kind: 1, "pointwise": 1}


def read_elsewhere(b: Builder) -> tuple[str, ...]:
    b.pointwise("s", ADD, "y", "in1")
    b.pointwise("r", ADD, "s", "y")
    return ("r",)


def an_output(b: Builder) -> tuple[str, ...]:
    b.pointwise("r", ADD, "y", "in1")
    return ("r", "y")


def added_to_itself(b: Builder) -> tuple[str, ...]:
    b.pointwise("r", ADD, "y", "y")
    return ("r",)


def added_to_what_comes_later(b: Builder) -> tuple[str, ...]:
    b.pointwise("s", (("exp", (("x", 0),)),), "in1")
    b.pointwise("r", ADD, "y", "s")
    return ("r",)


def added_by_what_adds_already(b: Builder) -> tuple[str, ...]:
    b.ops[-1] = b.ops[-1].with_inputs(add="in1")
    b.pointwise("r", ADD, "y", "in1")
    return ("r",)


def added_to_a_broadcast(b: Builder) -> tuple[str, ...]:
    shape = b.tensors["y"].shape
    b.view("one", "in1", shape, strides=(0, 1, 0, 0))
    b.pointwise("r", ADD, "y", "one")
    return ("r",)


@pytest.mark.parametrize(
    "after",
    [
        read_elsewhere,
        an_output,
        added_to_itself,
        added_to_what_comes_later,
        added_by_what_adds_already,
        added_to_a_broadcast,
    ],
)
def test_what_must_not_be_fused(after):
    b = resized("resize_grad")
    program = b.program(*after(b))
    assert kinds(assert_same(program, fuse_sums(program))) == kinds(program)
