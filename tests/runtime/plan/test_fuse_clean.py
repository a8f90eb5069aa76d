"""What needs no kernel: dead results, known values, values computed twice."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.runtime.plan.fuse_clean import drop_dead, fold_constants, share_equal
from support.fusing import assert_same, kinds, only
from support.programs import PLAIN, WINDOW, Builder

SHAPE = (1, 2, 3, 4)
X0, X1 = ("x", 0), ("x", 1)
ADD, EXP = (("add", (X0, X1)),), (("exp", (X0,)),)


def given(*names: str) -> Builder:
    """Tensors with values; those called t... and y are to be written."""
    b = Builder()
    for name in names:
        written = name[0] in "ty"
        b.tensor(name, SHAPE, storage="arena" if written else "weights")
    return b


def test_results_nobody_reads_are_not_computed():
    b = given("p", "t1", "t2", "y")
    b.pointwise("t1", EXP, "p")
    b.pointwise("t2", EXP, "t1")
    b.pointwise("y", ADD, "t1", "p")
    live = assert_same(b.program("y"), drop_dead(b.program("y")))
    assert kinds(live) == {"pointwise": 2}
    assert "t2" not in live.tensors


def test_optional_results_nobody_reads_are_dropped():
    b = given("p", "q")
    b.tensor("value", (1, 1, 1, 1))
    b.tensor("grad", SHAPE)
    at = {"value_scale": 1.0, "grad_scale": 1.0}
    b.op("l1_loss", {"a": "p", "b": "q"}, {"value": "value", "grad": "grad"}, **at)
    live = assert_same(b.program("value"), drop_dead(b.program("value")))
    assert only(live, "l1_loss").outputs == {"value": "value"}


def test_what_writes_a_part_of_an_output_or_a_running_sum_is_kept():
    b = given("p", "t")
    b.view("t.low", "t", (1, 1, 3, 4))
    b.view("t.high", "t", (1, 1, 3, 4), 12)
    b.view("p.low", "p", (1, 1, 3, 4))
    for name in ("t.low", "t.high"):
        b.pointwise(name, EXP, "p.low")
    assert kinds(drop_dead(b.program("t"))) == {"pointwise": 2}


def test_a_value_is_computed_once():
    b = given("p", "q", "t1", "t2", "y")
    b.pointwise("t1", ADD, "p", "q")
    b.pointwise("t2", ADD, "p", "q")
    b.pointwise("y", (("mul", (X0, X1)),), "t1", "t2")
    assert kinds(assert_same(b.program("y"), share_equal(b.program("y")))) == {"pointwise": 2}


def test_views_of_the_same_elements_get_one_name():
    b = given("p", "q", "t1", "t2", "y")
    b.view("v", "p", SHAPE)
    b.view("w1", "q", SHAPE, 23, (-24, -12, -4, -1))
    b.view("w2", "q", SHAPE, 23, (0, -12, -4, -1))  # the stride of an axis of length 1 is nothing
    b.pointwise("t1", ADD, "v", "w1")
    b.pointwise("t2", ADD, "p", "w2")
    b.pointwise("y", (("mul", (X0, X1)),), "t1", "t2")
    assert kinds(assert_same(b.program("y"), share_equal(b.program("y")))) == {"pointwise": 2}


@pytest.mark.parametrize("outputs", [("t1", "t2"), ("y", "t2")])
def test_a_value_that_is_an_output_under_two_names_is_computed_for_both(outputs):
    b = given("p", "t1", "t2", "y")
    b.pointwise("t1", EXP, "p")
    b.pointwise("t2", EXP, "p")
    b.pointwise("y", ADD, "t1", "t2")
    program = b.program(*outputs)
    assert kinds(assert_same(program, share_equal(program))) == kinds(program)


@pytest.mark.parametrize("other", [(("mul", (X0, ("c", 2.5))),), (("mul", (("c", 2.0), X0)),)])
def test_operations_that_differ_in_a_number_or_an_order_are_two(other):
    b = given("p", "t1", "t2", "y")
    b.pointwise("t1", (("mul", (X0, ("c", 2.0))),), "p")
    b.pointwise("t2", other, "p")
    b.pointwise("y", ADD, "t1", "t2")
    assert kinds(assert_same(b.program("y"), share_equal(b.program("y")))) == {"pointwise": 3}


def test_running_sums_are_never_shared():
    b = Builder()
    for name, shape in (("x", (1, 2, 6, 5)), ("g", (1, 3, 6, 5))):
        b.tensor(name, shape, storage="weights")
    at = {**{name: PLAIN[name] for name in WINDOW}, "bias_of": "grad_y"}
    b.tensor("t1", (3, 2, 3, 3))
    b.op("conv_weight_grad", {"x0": "x", "grad_y": "g"}, {"weight": "t1"}, **at)
    for old, new in (("t1", "t2"), ("t2", "t3")):
        b.view(new, "t1", (3, 2, 3, 3))
        inputs = {"x0": "x", "grad_y": "g", "sum_weight": old}
        b.op("conv_weight_grad", inputs, {"weight": new}, **at)
    shared = assert_same(b.program("t3"), share_equal(b.program("t3")))
    assert kinds(shared) == {"conv_weight_grad": 3}


def test_constants_become_numbers_and_numbers_are_worked_out():
    b = given("p", "y")
    b.constant("two", np.full((1, 2, 1, 1), 2.0))
    b.view("twos", "two", SHAPE, strides=(2, 1, 0, 0))
    steps = (("mul", (X0, ("c", 0.25))), ("neg", (("t", 0),)), ("div", (X1, ("t", 1))))
    b.pointwise("y", steps, "twos", "p")
    folded = assert_same(b.program("y"), fold_constants(b.program("y")))
    op = only(folded, "pointwise")
    assert (op.inputs, op.attributes["expression"]) == (
        {"x0": "p"},
        (("div", (X0, ("c", -0.5))),),
    )
    assert folded.constants == {}


@pytest.mark.parametrize(
    "step", [("mul", (X0, ("c", 1.0))), ("add", (("c", 0.0), X0)), ("pow", (X0, ("c", 1.0)))]
)
def test_steps_that_change_nothing_are_copies(step):
    b = given("p", "y")
    b.pointwise("y", (step,), "p")
    folded = assert_same(b.program("y"), fold_constants(b.program("y")))
    assert only(folded, "pointwise").attributes["expression"] == (("copy", (X0,)),)


@pytest.mark.parametrize(
    "step",
    [("add", (X0, ("c", 0.25))), ("mul", (X0, ("c", 0.0))), ("sub", (("c", 0.0), X0))],
)
def test_steps_that_change_something_stay(step):
    b = given("p", "y")
    b.pointwise("y", (step,), "p")
    folded = assert_same(b.program("y"), fold_constants(b.program("y")))
    assert only(folded, "pointwise").attributes["expression"] == (step,)


def test_a_constant_of_several_values_and_a_parameter_stay():
    b = given("p", "y")
    b.constant("k", np.arange(24.0).reshape(SHAPE))
    b.pointwise("y", ADD, "p", "k")
    folded = assert_same(b.program("y"), fold_constants(b.program("y")))
    assert only(folded, "pointwise").inputs == {"x0": "p", "x1": "k"}
