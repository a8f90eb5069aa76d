"""Chains of pointwise operations are one expression; copies disappear."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.runtime.plan.fuse_pointwise import (
    drop_copies,
    fuse_before_reduce,
    merge_chains,
    recognise_rectifiers,
)
from edgeadapt.runtime.plan.kinds import MAX_INPUTS, MAX_STEPS
from support.fusing import assert_same, kinds, only
from support.programs import Builder

SHAPE = (1, 2, 3, 4)
X0, X1 = ("x", 0), ("x", 1)
ADD, EXP, COPY = (("add", (X0, X1)),), (("exp", (X0,)),), (("copy", (X0,)),)


def given(*names: str, **written: tuple[int, ...]) -> Builder:
    """Tensors with values, and some of other shapes to be written."""
    b = Builder()
    for name in names:
        b.tensor(name, SHAPE, storage="weights")
    for name, shape in written.items():
        b.tensor(name, shape)
    return b


def test_a_chain_is_one_expression_with_each_input_once():
    b = given("p", "q", s=SHAPE, t=SHAPE, y=SHAPE)
    b.pointwise("s", ADD, "p", "q")
    b.pointwise("t", EXP, "p")
    b.pointwise("y", (("mul", (X0, X1)), ("add", (("t", 0), X0))), "t", "s")
    op = only(assert_same(b.program("y"), merge_chains(b.program("y"))), "pointwise")
    assert sorted(op.inputs.values()) == ["p", "q"]


def test_steps_that_two_operations_share_are_computed_once():
    b = given("p", s=SHAPE, t=SHAPE, y=SHAPE)
    b.pointwise("s", EXP, "p")
    b.pointwise("t", EXP, "p")
    b.pointwise("y", ADD, "s", "t")
    op = only(assert_same(b.program("y"), merge_chains(b.program("y"))), "pointwise")
    assert [function for function, _ in op.attributes["expression"]] == ["exp", "add"]


def test_a_result_that_is_a_shared_step_stays_the_last_one():
    b = given("p", s=SHAPE, y=SHAPE)
    b.pointwise("s", EXP, "p")
    steps = (("sin", (X0,)), ("exp", (X1,)))
    b.pointwise("y", steps, "s", "p")
    assert_same(b.program("y"), merge_chains(b.program("y")))


def read_twice(b: Builder) -> tuple[str, ...]:
    b.pointwise("y", EXP, "s")
    b.pointwise("z", ADD, "s", "p")
    return ("y", "z")


def an_output(b: Builder) -> tuple[str, ...]:
    b.pointwise("y", EXP, "s")
    return ("y", "s")


def read_backwards(b: Builder) -> tuple[str, ...]:
    b.view("turned", "s", SHAPE, 23, (-24, -12, -4, -1))
    b.pointwise("y", EXP, "turned")
    return ("y",)


@pytest.mark.parametrize("after", [read_twice, an_output, read_backwards])
def test_what_must_not_be_merged(after):
    b = given("p", s=SHAPE, y=SHAPE, z=SHAPE)
    b.pointwise("s", EXP, "p")
    program = b.program(*after(b))
    assert kinds(assert_same(program, merge_chains(program))) == kinds(program)


def test_an_expression_takes_no_more_inputs_than_a_kernel():
    names = [f"p{i}" for i in range(MAX_INPUTS + 2)]
    b = given(*names, s=SHAPE, y=SHAPE)
    chain = [("add", (("x", 0), ("x", 1)))]
    chain += [("add", (("t", i), ("x", i + 2))) for i in range(MAX_INPUTS - 2)]
    b.pointwise("s", tuple(chain), *names[:MAX_INPUTS])
    b.pointwise("y", ADD, "s", names[-1])
    assert kinds(assert_same(b.program("y"), merge_chains(b.program("y")))) == {"pointwise": 2}


def test_an_expression_takes_no_more_steps_than_a_kernel():
    half = (("sin", (X0,)), *(("sin", (("t", i),)) for i in range(MAX_STEPS // 2)))
    b = given("p", s=SHAPE, y=SHAPE)
    b.pointwise("s", half, "p")
    b.pointwise("y", half, "s")
    assert kinds(assert_same(b.program("y"), merge_chains(b.program("y")))) == {"pointwise": 2}


@pytest.mark.parametrize("nothing_first", [True, False])
def test_the_derivative_of_a_relu_is_recognised(nothing_first: bool):
    b = given("g", "x", y=SHAPE)
    b.tensor("c", SHAPE, "bool")
    test, chosen = ("le", (("c", 0.0), X1)) if nothing_first else ("gt", (X1, ("c", 0.0)))
    b.pointwise("c", ((test, (X0, ("c", 0.0))),), "x")
    b.pointwise("y", (("where", (X0, *chosen)),), "c", "g")
    fused = recognise_rectifiers(b.program("y"))
    assert_same(b.program("y"), fused)
    assert fused.ops[-1].attributes["expression"][0][0] == "leaky_grad"


@pytest.mark.parametrize(
    ("test", "bound", "other"), [("le", 0.5, 0.0), ("le", 0, 1.0), ("lt", 0, 0)]
)
def test_another_bound_value_or_comparison_is_no_relu(test: str, bound: float, other: float):
    b = given("g", "x", y=SHAPE)
    b.tensor("c", SHAPE, "bool")
    b.pointwise("c", ((test, (X0, ("c", bound))),), "x")
    b.pointwise("y", (("where", (X0, ("c", other), X1)),), "c", "g")
    assert recognise_rectifiers(b.program("y")).ops[-1].attributes["expression"][0][0] == "where"


REDUCE = {"how": "sum", "axes": (2, 3), "before": None, "after": None, "scale": 1.0}


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ("abs", ("abs", (X0,))),
        ("square", ("mul", (X0, X0))),
        ("square", ("pow", (X0, ("c", 2.0)))),
    ],
)
def test_a_reduction_takes_magnitudes_and_squares(before: str, step):
    b = given("p", s=SHAPE, y=(1, 2, 1, 1))
    b.pointwise("s", (step,), "p")
    b.op("reduce", {"x": "s"}, {"y": "y"}, **REDUCE)
    fused = assert_same(b.program("y"), fuse_before_reduce(b.program("y")))
    assert only(fused, "reduce").attributes["before"] == before
    # Not when they are an output, nor twice.
    assert kinds(fuse_before_reduce(b.program("y", "s"))) == {"pointwise": 1, "reduce": 1}
    b.ops[-1] = b.ops[-1].with_attributes(before="square")
    assert kinds(fuse_before_reduce(b.program("y"))) == {"pointwise": 1, "reduce": 1}


def copied(b: Builder, source: str, result: str) -> None:
    b.pointwise(result, COPY, source)


def test_a_value_is_computed_where_it_is_copied_to():
    b = given("p", s=SHAPE)
    b.tensor("grad.p", (24,), storage="gradients")
    b.pointwise("s", EXP, "p")
    b.view("flat", "s", (24,))
    copied(b, "flat", "grad.p")
    fused = assert_same(b.program("grad.p"), drop_copies(b.program("grad.p")))
    assert kinds(fused) == {"pointwise": 1}
    assert fused.base(only(fused, "pointwise").outputs["y"]) == "grad.p"


def test_a_value_moves_into_the_session_whoever_reads_it():
    b = given("p", s=SHAPE, y=SHAPE)
    b.tensor("restored", SHAPE, storage="restored")
    b.pointwise("s", EXP, "p")
    copied(b, "s", "restored")
    b.tensor("z", (1, 1, 3, 4))
    b.view("half", "s", (1, 1, 3, 4), 12)
    b.pointwise("y", EXP, "s")
    b.pointwise("z", EXP, "half")
    program = b.program("restored", "y", "z")
    assert kinds(assert_same(program, drop_copies(program))) == {"pointwise": 3}


def test_a_view_of_what_moves_into_a_part_moves_with_it():
    b = given("p", s=SHAPE, wide=(1, 4, 3, 4))
    b.pointwise("s", EXP, "p")
    b.view("low", "wide", SHAPE, 0)
    b.view("high", "wide", SHAPE, 24)
    b.view("flat", "s", (24,))
    b.view("place", "wide", (24,), 24)
    b.pointwise("low", EXP, "p")
    copied(b, "flat", "place")
    fused = assert_same(b.program("wide"), drop_copies(b.program("wide")))
    assert [fused.tensors[op.outputs["y"]].view.offset for op in fused] == [24, 0]


def test_a_copy_of_what_stays_is_read_where_it_is():
    b = given("p", s=SHAPE, t=SHAPE, y=SHAPE)
    b.pointwise("s", EXP, "p")
    copied(b, "s", "t")
    b.pointwise("y", ADD, "t", "s")
    fused = assert_same(b.program("y"), drop_copies(b.program("y")))
    assert kinds(fused) == {"pointwise": 2}


def of_another_type(b: Builder) -> str:
    b.tensor("c", SHAPE, "bool")
    b.pointwise("c", (("gt", (X0, ("c", 0.0))),), "p")
    copied(b, "c", "s")
    return "s"


def in_another_order(b: Builder) -> str:
    b.pointwise("s", EXP, "p")
    b.view("turned", "s", SHAPE, 23, (-24, -12, -4, -1))
    copied(b, "turned", "t")
    return "t"


def of_a_weight(b: Builder) -> str:
    copied(b, "p", "s")
    b.pointwise("t", EXP, "s")
    return "t"


def of_a_constant_for_the_session(b: Builder) -> str:
    b.constant("k", np.ones(SHAPE))
    b.tensor("restored", SHAPE, storage="restored")
    copied(b, "k", "restored")
    return "restored"


def of_one_part_to_another_whole(b: Builder) -> str:
    b.tensor("wide", (1, 4, 3, 4))
    b.pointwise("s", EXP, "p")
    b.view("low", "wide", SHAPE, 0, (48, 12, 4, 1))
    b.view("high", "wide", SHAPE, 24, (48, 12, 4, 1))
    copied(b, "s", "low")
    b.pointwise("high", ADD, "s", "p")  # s would keep all of the wide one alive
    return "wide"


@pytest.mark.parametrize(
    "make",
    [
        of_another_type,
        in_another_order,
        of_a_weight,
        of_a_constant_for_the_session,
        of_one_part_to_another_whole,
    ],
)
def test_a_copy_that_stays(make):
    b = given("p", s=SHAPE, t=SHAPE)
    program = b.program(make(b))
    assert kinds(assert_same(program, drop_copies(program))) == kinds(program)
