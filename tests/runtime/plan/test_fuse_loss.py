"""The mean absolute error is one operation with its gradient; any other loss stays as it is."""

from __future__ import annotations

import pytest

from edgeadapt.runtime.plan.fuse_loss import fuse_l1
from edgeadapt.runtime.plan.ir import Op
from support.fusing import assert_same, kinds, only
from support.programs import Builder

SHAPE = (1, 3, 4, 5)
X0, X1 = ("x", 0), ("x", 1)
MEAN = {"how": "sum", "axes": (0, 1, 2, 3), "before": None, "after": None, "scale": 1 / 60}
SUB, ABS = (("sub", (X0, X1)),), (("abs", (X0,)),)


def loss(*, grad: bool = True, **reduction) -> Builder:
    """value = mean |a - b|, grad = -0.5 sign(a - b)."""
    b = Builder()
    for name in ("a", "b", "in1"):
        b.tensor(name, SHAPE, storage="weights")
    for name in ("d", "m", "s", "t", "grad", "r"):
        b.tensor(name, SHAPE)
    b.tensor("value", (1, 1, 1, 1))
    b.pointwise("d", SUB, "a", "b")
    b.pointwise("m", ABS, "d")
    b.op("reduce", {"x": "m"}, {"y": "value"}, **{**MEAN, **reduction})
    if grad:
        b.pointwise("s", (("sign", (X0,)),), "d")
        b.pointwise("t", (("mul", (("c", 0.5), X0)),), "s")
        b.pointwise("grad", (("neg", (X0,)),), "t")
    return b


def test_value_and_gradient_come_in_one_pass():
    program = loss().program("value", "grad")
    fused = assert_same(program, fuse_l1(program))
    assert kinds(fused) == {"l1_loss": 1}
    assert only(fused, "l1_loss").attributes == {"value_scale": 1 / 60, "grad_scale": -0.5}


def test_a_gradient_divided_by_a_number():
    b = loss()
    b.ops[-2] = b.ops[-2].with_attributes(expression=(("div", (X0, ("c", 4.0))),))
    program = b.program("value", "grad")
    op = only(assert_same(program, fuse_l1(program)), "l1_loss")
    assert op.attributes["grad_scale"] == -0.25


def test_a_value_alone_needs_no_gradient():
    program = loss(grad=False).program("value")
    op = only(assert_same(program, fuse_l1(program)), "l1_loss")
    assert op.outputs.keys() == {"value"}


def test_magnitudes_that_the_reduction_takes_itself():
    b = loss(before="abs")
    del b.ops[1]
    b.ops[1] = b.ops[1].with_inputs(x="d")
    program = b.program("value", "grad")
    assert kinds(assert_same(program, fuse_l1(program))) == {"l1_loss": 1}


def test_a_factor_that_is_a_tensor_ends_the_chain_of_the_gradient():
    b = loss()
    b.ops[-1] = b.ops[-1].with_inputs(x1="in1").with_attributes(expression=(("mul", (X0, X1)),))
    program = b.program("value", "grad")
    fused = assert_same(program, fuse_l1(program))
    assert kinds(fused) == {"l1_loss": 1, "pointwise": 1}
    assert only(fused, "l1_loss").attributes["grad_scale"] == 0.5


def the_difference_is_read_elsewhere(b: Builder) -> None:
    b.pointwise("r", (("exp", (X0,)),), "d")


def the_magnitudes_are_read_elsewhere(b: Builder) -> None:
    b.pointwise("r", (("exp", (X0,)),), "m")


def nothing_else(b: Builder) -> None:
    pass


@pytest.mark.parametrize(
    ("after", "outputs"),
    [
        (the_difference_is_read_elsewhere, ("value", "grad", "r")),
        (the_magnitudes_are_read_elsewhere, ("value", "grad", "r")),
        (nothing_else, ("value", "grad", "d")),
    ],
)
def test_what_is_needed_elsewhere_stays(after, outputs):
    b = loss()
    after(b)
    program = b.program(*outputs)
    assert "l1_loss" not in kinds(assert_same(program, fuse_l1(program)))


@pytest.mark.parametrize("other", [{"before": "square"}, {"after": "sqrt"}, {"how": "max"}])
def test_another_reduction_is_another_loss(other):
    program = loss(**other).program("value", "grad")
    assert "l1_loss" not in kinds(assert_same(program, fuse_l1(program)))


def test_a_sum_that_leaves_an_axis_is_no_loss():
    b = loss(axes=(2, 3), grad=False)
    b.tensor("value3", (1, 3, 1, 1))
    b.ops[-1] = Op("reduce", {"x": "m"}, {"y": "value3"}, b.ops[-1].attributes)
    program = b.program("value3")
    assert "l1_loss" not in kinds(assert_same(program, fuse_l1(program)))
