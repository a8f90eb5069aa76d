"""What a convolution takes over from the operations after it, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.runtime.plan.fuse_conv import fuse_epilogues, split_slices
from support.fusing import assert_same, kinds, only
from support.programs import Builder

SHAPE = (1, 4, 6, 5)
X0, X1 = ("x", 0), ("x", 1)
ADD = (("add", (X0, X1)),)
LEAKY = (("leaky", (X0, ("c", 0.1))),)
LEAKY_GRAD = (("leaky_grad", (X0, X1, ("c", 0.1))),)


def start(*more: str, channels: int = 4) -> Builder:
    """y = conv(x), and further tensors of its shape: "in..." given, the rest to be written."""
    b = Builder()
    b.tensor("x", SHAPE, storage="weights")
    b.tensor("w", (channels, 4, 3, 3), storage="weights")
    for name in more:
        b.tensor(name, SHAPE, storage="weights" if name.startswith("in") else "arena")
    b.tensor("y", (1, channels, 6, 5))
    b.conv("x", "w", "y", {})
    return b


def test_adds_leaky_and_an_add_after_it_are_fused_in_this_order():
    b = start("in1", "in2", "in3", "s1", "s2", "a", "r")
    b.pointwise("s1", ADD, "y", "in1")
    b.pointwise("s2", ADD, "in2", "s1")
    b.pointwise("a", LEAKY, "s2")
    b.pointwise("r", ADD, "a", "in3")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    op = only(fused, "conv")
    assert kinds(fused) == {"conv": 1}
    assert (op.inputs["add0"], op.inputs["add1"], op.inputs["post"]) == ("in1", "in2", "in3")
    assert op.attributes["slope"] == 0.1


def test_the_derivative_of_a_leaky_becomes_a_mask_and_ends_what_can_be_fused():
    b = start("in1", "in2", "in3", "s", "g", "r")
    b.pointwise("s", ADD, "y", "in1")
    b.pointwise("g", LEAKY_GRAD, "s", "in2")
    b.pointwise("r", ADD, "g", "in3")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    op = only(fused, "conv")
    assert kinds(fused) == {"conv": 1, "pointwise": 1}
    assert (op.inputs["add0"], op.inputs["mask"]) == ("in1", "in2")
    assert op.attributes["mask_slope"] == 0.1


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_derivatives_that_want_the_sign_read_the_activation_instead(slope: float):
    b = start("in1", "a", "g")
    b.pointwise("a", (("leaky", (X0, ("c", slope))),), "y")
    b.pointwise("g", LEAKY_GRAD, "in1", "y")
    fused = assert_same(b.program("a", "g"), fuse_epilogues(b.program("a", "g")))
    assert kinds(fused) == {"conv": 1, "pointwise": 1}
    assert only(fused, "pointwise").inputs == {"x0": "in1", "x1": "a"}


def test_a_relu_written_as_a_maximum_is_one():
    b = start("a")
    b.pointwise("a", (("max", (X0, ("c", 0.0))),), "y")
    fused = assert_same(b.program("a"), fuse_epilogues(b.program("a")))
    assert only(fused, "conv").attributes["slope"] == 0.0


def test_a_sum_of_three_is_opened_when_the_last_convolution_computes_it():
    b = start("in1", "in2", "s", "r")
    b.ops.clear()
    b.pointwise("s", ADD, "in1", "in2")
    b.conv("x", "w", "y", {})
    b.pointwise("r", ADD, "s", "y")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    assert kinds(fused) == {"conv": 1}


def test_of_two_convolutions_that_are_added_the_later_one_takes_the_sum():
    b = start("z", "r")
    b.conv("x", "w", "z", {})
    b.pointwise("r", ADD, "y", "z")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    assert [op.inputs.get("add0") for op in fused] == [None, "y"]


def leaky_of_what_is_read_elsewhere(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", LEAKY, "y")
    b.pointwise("r", ADD, "a", "y")
    return ("r",)


def leaky_of_an_output(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", LEAKY, "y")
    return ("a", "y")


def leaky_that_turns_the_sign(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", (("leaky", (X0, ("c", -0.5))),), "y")
    return ("a",)


def add_of_itself(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", ADD, "y", "y")
    return ("a",)


def add_of_what_comes_later(b: Builder) -> tuple[str, ...]:
    b.pointwise("s", (("exp", (X0,)),), "in1")
    b.pointwise("a", ADD, "y", "s")
    return ("a",)


def add_of_a_broadcast(b: Builder) -> tuple[str, ...]:
    b.constant("one", np.ones((1, 4, 1, 1)))
    b.view("wide", "one", SHAPE, strides=(4, 1, 0, 0))
    b.pointwise("a", ADD, "y", "wide")
    return ("a",)


def mask_by_its_own_sign(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", LEAKY_GRAD, "y", "y")
    return ("a",)


def mask_by_its_own_sign_beside_the_leaky(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", LEAKY, "y")
    b.pointwise("r", LEAKY_GRAD, "y", "y")
    return ("a", "r")


def mask_of_a_result_that_stays(b: Builder) -> tuple[str, ...]:
    b.pointwise("a", LEAKY_GRAD, "y", "in1")
    b.pointwise("r", ADD, "a", "y")
    return ("r",)


@pytest.mark.parametrize(
    "after",
    [
        leaky_of_what_is_read_elsewhere,
        leaky_of_an_output,
        leaky_that_turns_the_sign,
        add_of_itself,
        add_of_what_comes_later,
        add_of_a_broadcast,
        mask_by_its_own_sign,
        mask_by_its_own_sign_beside_the_leaky,
        mask_of_a_result_that_stays,
    ],
)
def test_what_must_not_be_fused(after):
    b = start("in1", "a", "s", "r")
    outputs = after(b)
    fused = assert_same(b.program(*outputs), fuse_epilogues(b.program(*outputs)))
    assert kinds(fused) == kinds(b.program(*outputs))


def test_a_leaky_after_an_add_after_a_leaky_is_not_fused():
    b = start("in1", "a", "s", "r")
    b.pointwise("a", LEAKY, "y")
    b.pointwise("s", ADD, "a", "in1")
    b.pointwise("r", LEAKY, "s")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    assert kinds(fused) == {"conv": 1, "pointwise": 1}


def test_a_leaky_after_three_adds_or_after_a_mask_is_not_fused():
    b = start("in1", "in2", "in3", "s1", "s2", "s3", "r")
    for number, before in enumerate(("y", "s1", "s2"), 1):
        b.pointwise(f"s{number}", ADD, before, f"in{number}")
    b.pointwise("r", LEAKY, "s3")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    assert kinds(fused) == {"conv": 1, "pointwise": 1}
    assert only(fused, "conv").inputs["post"] == "in3"

    b = start("in1", "g", "r")
    b.pointwise("g", LEAKY_GRAD, "y", "in1")
    b.pointwise("r", LEAKY, "g")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    assert kinds(fused) == {"conv": 1, "pointwise": 1}


def test_a_sum_that_the_convolution_reads_as_its_source_too_is_not_opened():
    b = start("in1", "in2", "s", "r")
    b.ops.clear()
    b.pointwise("s", ADD, "in1", "in2")
    b.conv("s", "w", "y", {})
    b.pointwise("r", ADD, "s", "y")
    fused = assert_same(b.program("r"), fuse_epilogues(b.program("r")))
    assert kinds(fused) == {"conv": 1, "pointwise": 1}


def halves(b: Builder) -> tuple[str, str]:
    """The first and last four of eight channels of y."""
    strides = (240, 30, 5, 1)
    return b.view("lo", "y", SHAPE, 0, strides), b.view("hi", "y", SHAPE, 120, strides)


def test_slices_are_convolutions_of_their_own_where_one_can_be_fused():
    b = start("in1", "g", "h", channels=8)
    low, high = halves(b)
    b.pointwise("g", LEAKY_GRAD, low, "in1")
    b.pointwise("h", (("exp", (X0,)),), high)
    split = split_slices(b.program("g", "h"))
    fused = assert_same(b.program("g", "h"), fuse_epilogues(split))
    assert kinds(fused) == {"conv": 2, "pointwise": 1}
    parts = {op.attributes["out_channels"]: op for op in fused if op.kind == "conv"}
    assert parts.keys() == {(0, 4), (4, 4)}
    assert parts[0, 4].inputs["mask"] == "in1"


def test_slices_that_are_added_to_each_other_are_two_convolutions():
    b = start("in1", "s", "g", channels=8)
    b.pointwise("s", ADD, *halves(b))
    b.pointwise("g", LEAKY_GRAD, "s", "in1")
    fused = assert_same(b.program("g"), fuse_epilogues(split_slices(b.program("g"))))
    assert [sorted(op.inputs) for op in fused] == [
        ["weight", "x0"],
        ["add0", "mask", "weight", "x0"],
    ]


def test_slices_of_slices_count_channels_from_the_weights_first():
    b = start("in1", "g", "h", channels=8)
    b.tensor("wide", (1, 6, 6, 5))
    b.ops.clear()
    b.conv("x", "w", "wide", {}, out_channels=(2, 6))
    b.view("lo", "wide", SHAPE, 0, (180, 30, 5, 1))
    b.pointwise("g", LEAKY_GRAD, "lo", "in1")
    fused = assert_same(b.program("g"), fuse_epilogues(split_slices(b.program("g"))))
    assert only(fused, "conv").attributes["out_channels"] == (2, 4)


def whole_is_read_too(b: Builder) -> tuple[str, ...]:
    low, _ = halves(b)
    b.pointwise("g", LEAKY_GRAD, low, "in1")
    b.tensor("e", (1, 8, 6, 5))
    b.pointwise("e", (("exp", (X0,)),), "y")
    return ("g", "e")


def slices_overlap(b: Builder) -> tuple[str, ...]:
    low, _ = halves(b)
    b.view("mid", "y", SHAPE, 60, (240, 30, 5, 1))
    b.pointwise("g", LEAKY_GRAD, low, "in1")
    b.pointwise("h", (("exp", (X0,)),), "mid")
    return ("g", "h")


def nothing_to_fuse(b: Builder) -> tuple[str, ...]:
    low, high = halves(b)
    b.pointwise("g", (("exp", (X0,)),), low)
    b.pointwise("h", (("exp", (X0,)),), high)
    return ("g", "h")


def rows_instead_of_channels(b: Builder) -> tuple[str, ...]:
    b.tensor("top", (1, 8, 3, 5))
    b.view("rows", "y", (1, 8, 3, 5), 0, (240, 30, 5, 1))
    b.view("mask", "in1", (1, 8, 3, 5), 0, (120, 15, 5, 1))
    b.pointwise("top", LEAKY_GRAD, "rows", "mask")
    return ("top",)


@pytest.mark.parametrize(
    "after", [whole_is_read_too, slices_overlap, nothing_to_fuse, rows_instead_of_channels]
)
def test_what_must_not_be_split(after):
    b = start("in1", "g", "h", channels=8)
    outputs = after(b)
    assert kinds(split_slices(b.program(*outputs)))["conv"] == 1


def test_a_grouped_convolution_is_not_split():
    b = start("in1", "g", channels=8)
    b.tensor("wg", (8, 2, 3, 3), storage="weights")
    b.ops.clear()
    b.conv("x", "wg", "y", {}, group=2)
    low, _ = halves(b)
    b.pointwise("g", LEAKY_GRAD, low, "in1")
    split = split_slices(b.program("g"))
    assert only(split, "conv").attributes["out_channels"] is None
