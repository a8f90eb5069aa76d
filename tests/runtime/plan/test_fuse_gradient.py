"""Gradients of weight and bias come in one pass and add up where they lie."""

from __future__ import annotations

import pytest

from edgeadapt.runtime.plan.fuse_gradient import accumulate, fuse_bias
from edgeadapt.runtime.plan.ir import Program
from support.fusing import assert_same, kinds, only
from support.programs import PLAIN, WINDOW, Builder

X0, X1 = ("x", 0), ("x", 1)
ADD = (("add", (X0, X1)),)
AT = {name: PLAIN[name] for name in WINDOW}
SUM = {"how": "sum", "axes": (0, 2, 3), "before": None, "after": None, "scale": 1.0}


class Gradients(Builder):
    """Weight gradients of a convolution from two to three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor("grad.w", (3, 2, 3, 3), storage="gradients")
        self.tensor("grad.b", (3,), storage="gradients")

    def use(self, number: int, weight: str = "", bias: str = "", **reduction) -> None:
        """The gradients of one use: w1 and b1 for number 1, unless named."""
        x, grad_y = f"x{number}", f"g{number}"
        self.tensor(x, (1, 2, 6, 5), storage="weights")
        self.tensor(grad_y, (1, 3, 6, 5), storage="weights")
        weight = weight or self.tensor(f"w{number}", (3, 2, 3, 3))
        bias = bias or self.tensor(f"b{number}", (3,))
        inputs = {"x0": x, "grad_y": grad_y}
        self.op("conv_weight_grad", inputs, {"weight": weight}, bias_of="grad_y", **AT)
        kept = self.view(f"{bias}.kept", bias, (1, 3, 1, 1))
        self.op("reduce", {"x": grad_y}, {"y": kept}, **{**SUM, **reduction})

    def add(self, a: str, b: str, y: str = "") -> str:
        """The sum, a tensor of the arena unless named."""
        y = y or self.tensor(f"{a}+{b}", self.tensors[a].shape)
        return self.pointwise(y, ADD, a, b)


def fused(b: Builder, *outputs: str) -> Program:
    program = b.program(*(outputs or ("grad.w", "grad.b")))
    return assert_same(program, accumulate(assert_same(program, fuse_bias(program))))


def test_weight_and_bias_come_in_one_pass():
    b = Gradients()
    b.use(1, "grad.w", "grad.b")
    op = only(fused(b), "conv_weight_grad")
    assert op.attributes["bias_of"] == "grad_y"
    assert op.outputs.keys() == {"weight", "bias"}


def test_the_bias_of_a_transposed_convolution_is_the_sum_of_x():
    b = Gradients()
    b.use(1, "grad.w")
    b.ops.pop()
    b.tensor("grad.t", (2,), storage="gradients")
    b.view("kept", "grad.t", (1, 2, 1, 1))
    b.op("reduce", {"x": "x1"}, {"y": "kept"}, **SUM)
    assert only(fused(b, "grad.w", "grad.t"), "conv_weight_grad").attributes["bias_of"] == "x"


@pytest.mark.parametrize(
    "other", [{"scale": 0.5}, {"before": "square"}, {"how": "max"}, {"after": "sqrt"}]
)
def test_another_reduction_is_no_bias(other):
    b = Gradients()
    b.use(1, "grad.w", "grad.b", **other)
    b.tensors["g1"] = b.tensors["g1"]
    if "after" in other:  # of squares, so that the root exists
        b.ops[-1] = b.ops[-1].with_attributes(before="square")
    assert kinds(fused(b)) == {"conv_weight_grad": 1, "reduce": 1}


def test_the_sum_of_x_is_no_bias_where_x_has_two_sources():
    b = Gradients()
    b.use(1, "grad.w")
    b.ops.pop()
    b.tensor("half", (1, 1, 6, 5), storage="weights")
    b.tensor("other", (1, 1, 6, 5), storage="weights")
    b.ops[-1] = b.ops[-1].with_inputs(x0="half", x1="other")
    b.tensor("total", (1, 1, 1, 1))
    b.op("reduce", {"x": "half"}, {"y": "total"}, **SUM)
    assert kinds(fused(b, "grad.w", "total")) == {"conv_weight_grad": 1, "reduce": 1}


def test_a_bias_that_is_read_before_the_weight_gradient_runs_is_not_fused():
    b = Gradients()
    b.use(1, "grad.w")
    gradient, reduction = b.ops
    b.tensor("g1", (1, 3, 6, 5))
    b.tensor("x1", (1, 2, 6, 5))
    b.tensor("w", (3, 2, 3, 3), storage="weights")
    b.ops.clear()
    b.tensor("given", (1, 3, 6, 5), storage="weights")
    b.pointwise("g1", (("exp", (X0,)),), "given")
    b.ops.append(reduction)
    b.view("wide", "b1", (1, 2, 6, 5), strides=(0, 1, 0, 0))
    b.pointwise("x1", (("exp", (X0,)),), "wide")  # x depends on the bias
    b.ops.append(gradient)
    assert kinds(fused(b, "grad.w")) == {"pointwise": 2, "conv_weight_grad": 1, "reduce": 1}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_gradients_of_shared_weights_add_up_in_place(count: int):
    b = Gradients()
    for number in range(1, count + 1):
        b.use(number)
        if 1 < number < count:
            b.add("w1" if number == 2 else weight, f"w{number}")  # noqa: F821
            bias = b.add("b1" if number == 2 else bias, f"b{number}")  # noqa: F821
            weight = b.ops[-2].outputs["y"]
    b.add("w1" if count == 2 else weight, f"w{count}", "grad.w")
    b.add("b1" if count == 2 else bias, f"b{count}", "grad.b")
    program = fused(b)
    assert kinds(program) == {"conv_weight_grad": count}
    assert all(program.base(op.outputs["weight"]) == "grad.w" for op in program)
    assert all(program.base(op.outputs["bias"]) == "grad.b" for op in program)
    assert ["sum_weight" in op.inputs for op in program] == [False] + [True] * (count - 1)


def test_gradients_add_up_in_the_order_in_which_they_run():
    b = Gradients()
    for number in (1, 2):
        b.use(number)
    b.add("w2", "w1", "grad.w")
    b.add("b2", "b1", "grad.b")
    assert ["sum_weight" in op.inputs for op in fused(b)] == [False, True]


def test_a_term_that_is_no_weight_gradient_is_added_at_the_end():
    b = Gradients()
    for number in (1, 2):
        b.use(number)
    for name in ("decay", "more"):
        b.tensor(name, (3, 2, 3, 3), storage="weights")
    b.add(b.add("w1", "decay"), b.add("w2", "more"), "grad.w")
    b.add("b1", "b2", "grad.b")
    program = fused(b)
    assert kinds(program) == {"conv_weight_grad": 2, "pointwise": 2}
    assert [op.kind for op in program][-1] == "pointwise"


def test_a_sum_in_the_arena_adds_up_in_place_too():
    b = Gradients()
    for number in (1, 2):
        b.use(number)
    total = b.add("w1", "w2")
    b.pointwise("grad.w", (("mul", (X0, ("c", 2.0))),), total)
    b.add("b1", "b2", "grad.b")
    assert kinds(fused(b)) == {"conv_weight_grad": 2, "pointwise": 1}


def the_term_is_an_output(b: Gradients) -> tuple[str, ...]:
    b.add("w1", "w2", "grad.w")
    return ("grad.w", "w1")


def the_term_is_read_elsewhere(b: Gradients) -> tuple[str, ...]:
    b.add("w1", "w2", "grad.w")
    b.tensor("r", (3, 2, 3, 3))
    b.pointwise("r", (("exp", (X0,)),), "w1")
    return ("grad.w", "r")


def the_term_is_added_twice(b: Gradients) -> tuple[str, ...]:
    b.add("w1", "w1", "grad.w")
    return ("grad.w",)


@pytest.mark.parametrize(
    "after", [the_term_is_an_output, the_term_is_read_elsewhere, the_term_is_added_twice]
)
def test_what_must_not_be_added_in_place(after):
    b = Gradients()
    for number in (1, 2):
        b.use(number)
    program = b.program(*after(b))
    assert kinds(assert_same(program, accumulate(program))) == kinds(program)
