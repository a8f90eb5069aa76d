"""`check` accepts what the reader gives, and says what is wrong with a program that is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeadapt.runtime.plan.check import check
from edgeadapt.runtime.plan.check_kinds import WANTS
from edgeadapt.runtime.plan.ir import Op, Program, View
from edgeadapt.runtime.plan.kinds import KINDS
from support.programs import PLAIN, Builder
from support.training_program import training_step

GRAD = {
    "kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1,
    "bias_of": "grad_y",
}  # fmt: skip
COPY = (("copy", (("x", 0),)),)
POOL = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
UP = {"mode": "linear", "scale": 2}


def whole() -> Builder:
    """One operation of nearly every kind."""
    b = Builder()
    b.tensor("image", (1, 3, 6, 8), storage="image")
    for name, shape in {"w": (4, 3, 3, 3), "b": (4,)}.items():
        b.tensor(name, shape, storage="weights")
        b.tensor(f"grad.{name}", shape, storage="gradients")
        b.same_place(f"{name}.sum", f"grad.{name}")
        b.same_place(f"{name}.new", name)
    b.constant("half", np.full((1, 4, 1, 1), 0.5))
    b.tensor("y", (1, 4, 6, 8))
    b.conv("image", "w", "y", {"bias": "b"}, out_channels=(0, 4))
    b.view("top", "y", (1, 2, 6, 8), strides=(192, 48, 8, 1))
    b.tensor("joined", (1, 6, 6, 8))
    b.op("concat", {"x0": "y", "x1": "top"}, {"y": "joined"}, axis=1)
    b.view("halves", "half", (1, 4, 6, 8), strides=(4, 1, 0, 0))
    b.tensor("z", (1, 4, 6, 8))
    b.pointwise("z", (("mul", (("x", 0), ("x", 1))), ("exp", (("t", 0),))), "y", "halves")
    shapes = {"mean": (1, 1, 1, 1), "small": (1, 4, 3, 4), "large": (1, 4, 6, 8)}
    for name, shape in shapes.items():
        b.tensor(name, shape)
    b.op("reduce", {"x": "z"}, {"y": "mean"}, how="sum", axes=(0, 1, 2, 3), before="abs",
         after=None, scale=0.1)  # fmt: skip
    b.op("avg_pool", {"x": "z"}, {"y": "small"}, **POOL)
    b.op("resize", {"x": "small"}, {"y": "large"}, **UP)
    b.tensor("peak", (1, 4, 3, 4))
    b.op("max_pool", {"x": "z"}, {"y": "peak"}, dilations=(1, 1), **POOL)
    b.tensor("back", (1, 4, 6, 8))
    at = {"dilations": (1, 1), **POOL}
    b.op("max_pool_grad", {"grad_y": "peak", "x": "z"}, {"y": "back"}, **at)
    b.tensor("framed", (1, 4, 7, 10))
    pads = {"pads": (0, 0, 1, 0, 0, 0, 0, 2), "mode": "reflect"}
    b.op("pad", {"x": "back"}, {"y": "framed"}, value=0.0, **pads)
    b.tensor("unframed", (1, 4, 6, 8))
    b.op("pad_grad", {"grad_y": "framed"}, {"y": "unframed"}, **pads)
    b.tensor("loss", ())
    b.tensor("g", (1, 4, 6, 8))
    roles = {"value": "loss", "grad": "g"}
    b.op("l1_loss", {"a": "unframed", "b": "y"}, roles, value_scale=1.0, grad_scale=0.1)
    once = {"weight": "grad.w", "bias": "grad.b"}
    again = {"weight": "w.sum", "bias": "b.sum"}
    b.op("conv_weight_grad", {"x0": "image", "grad_y": "g"}, once, **GRAD)
    inputs = {"x0": "image", "grad_y": "g", "sum_weight": "grad.w", "sum_bias": "grad.b"}
    b.op("conv_weight_grad", inputs, again, **GRAD)
    b.view("flat", "back", (1, 1, 4, 48))
    b.view("turned", "z", (1, 1, 48, 4), strides=(192, 192, 1, 48))
    b.tensor("product", (1, 1, 4, 4))
    b.op("matmul", {"a": "flat", "b": "turned"}, {"y": "product"})
    b.op("update_sgd", {"weight": "w", "grad": "w.sum"}, {"weight_new": "w.new"}, step_size=0.1)
    return b


def broken(change: Callable[[Builder], Any]) -> Program:
    b = whole()
    change(b)
    return b.program("loss", "mean", "large", "joined", "w.new", "b.sum", "product")


def tensor(name: str, /, **fields: Any) -> Callable[[Builder], Any]:
    def change(b: Builder) -> None:
        b.tensors[name] = replace(b.tensors[name], **fields)

    return change


def op(position: int, **fields: Any) -> Callable[[Builder], Any]:
    """Other ``attributes``, ``inputs`` or ``outputs``, on top of those there are."""

    def change(b: Builder) -> None:
        old = b.ops[position]
        merged = {key: {**getattr(old, key), **value} for key, value in fields.items()}
        b.ops[position] = replace(old, **merged)

    return change


def without(position: int, key: str, role: str) -> Callable[[Builder], Any]:
    def change(b: Builder) -> None:
        old = b.ops[position]
        left = {name: value for name, value in getattr(old, key).items() if name != role}
        b.ops[position] = replace(old, **{key: left})

    return change


def swap(first: int, second: int) -> Callable[[Builder], Any]:
    def change(b: Builder) -> None:
        b.ops[first], b.ops[second] = b.ops[second], b.ops[first]

    return change


(CONV, CONCAT, POINT, REDUCE, AVERAGE, RESIZE, LARGEST, LARGEST_GRAD, PAD, PAD_GRAD, LOSS, FIRST,
 SECOND, MATMUL, UPDATE) = range(15)  # fmt: skip


def append(kind: str, inputs: dict[str, str], outputs: dict[str, str], **at: Any) -> Any:
    return lambda b: b.op(kind, inputs, outputs, **at)


def far_view(b: Builder) -> None:
    b.tensors["top"] = replace(b.tensors["top"], view=View("y", 100, (192, 48, 8, 1)))


def in_place(y: str, *inputs: str) -> Callable[[Builder], Any]:
    return lambda b: b.pointwise(y, COPY, *inputs)


def backwards(b: Builder) -> None:
    b.view("mirrored", "y", (1, 4, 6, 8), 7, (192, 48, 8, -1))
    b.ops[AVERAGE] = b.ops[AVERAGE].with_inputs(x="mirrored")


def half_written(b: Builder) -> None:
    b.tensor("parts", (1, 4, 6, 8))
    b.view("upper", "parts", (1, 2, 6, 8), strides=(192, 48, 8, 1))
    b.pointwise("upper", COPY, "top")
    b.tensor("after", (1, 4, 6, 8))
    b.pointwise("after", COPY, "parts")


def over_itself(b: Builder) -> None:
    b.tensor("m", (1, 4, 6, 8))
    b.pointwise("m", COPY, "y")
    b.view("m.shifted", "m", (1, 4, 6, 4), 1, (192, 48, 8, 1))
    b.view("m.left", "m", (1, 4, 6, 4), 0, (192, 48, 8, 1))
    b.pointwise("m.shifted", COPY, "m.left")


def spread(b: Builder) -> None:
    b.tensor("one", (1, 4, 1, 1))
    b.view("spread", "one", (1, 4, 6, 8), strides=(4, 1, 0, 0))
    b.pointwise("spread", COPY, "y")


def in_place_of_a_neighbour(b: Builder) -> None:
    b.tensor("m", (1, 4, 6, 8))
    b.pointwise("m", COPY, "y")
    for name, column in (("m.left", 0), ("m.right", 1)):
        b.view(name, "m", (1, 4, 6, 4), column, (192, 48, 8, 1))
    b.view("m.new", "m", (1, 4, 6, 4), 0, (192, 48, 8, 1))
    b.pointwise("m.new", (("add", (("x", 0), ("x", 1))),), "m.left", "m.right")


BROKEN = {
    "another name": (tensor("y", name="q"), "the tensor there is called q"),
    "another type": (tensor("y", dtype="f8"), "unknown type 'f8'"),
    "another storage": (tensor("y", storage="heap"), "unknown storage 'heap'"),
    "an offset in the arena": (tensor("y", offset=4), "an offset, but not within"),
    "a shape of floats": (tensor("y", shape=(1, 4.0, 6, 8)), "y: shape"),
    "a view outside": (far_view, "top: elements 100 to 195 of y, which has 192"),
    "a view of a view": (tensor("flat", view=View("top", 0, (192, 192, 48, 1))), "is a view"),
    "a view of nothing": (tensor("flat", view=View("q", 0, (192, 192, 48, 1))), "is missing"),
    "strides of another rank": (tensor("flat", view=View("back", 0, (1,))), r"\(1,\) for"),
    "a view of another type": (tensor("flat", dtype="bf16"), "other type or storage"),
    "a constant without values": (lambda b: b.constants.clear(), "a constant without values"),
    "values of another shape": (tensor("half", shape=(4, 1)), "its values are"),
    "values without a tensor": (lambda b: b.constants.update(q=np.ones(1)), "without a tensor"),
    "an unknown kind": (append("fft", {"x": "y"}, {"y": "z"}), "operation 15, fft .*no such kind"),
    "an unknown tensor": (op(RESIZE, inputs={"x": "q"}), "q is no tensor"),
    "an input too many": (op(RESIZE, inputs={"bias": "b"}), "has no input bias"),
    "an input too few": (without(MATMUL, "inputs", "b"), "input b is missing"),
    "an output too many": (op(RESIZE, outputs={"grad": "g"}), "has no output grad"),
    "an output too few": (without(LOSS, "outputs", "value"), "output value is missing"),
    "an attribute too many": (op(MATMUL, attributes={"axis": 1}), "has no attribute axis"),
    "an attribute too few": (without(PAD, "attributes", "value"), "attribute value is missing"),
    "seven axes": (tensor("y", shape=(1, 1, 1, 1, 4, 6, 8)), "y has 7 axes"),
    "a bool for a convolution": (tensor("w", dtype="bool"), "w is bool"),
    "read before it is written": (swap(CONV, CONCAT), "y is read before all of it is written"),
    "read when half is written": (half_written, "parts is read before all of it is written"),
    "written twice": (append("resize", {"x": "small"}, {"y": "large"}, **UP), "a second time"),
    "written to the image": (in_place("image", "image"), "image is written, but is the session's"),
    "an output nobody writes": (lambda b: b.ops.pop(MATMUL), "output product is not written"),
    "a sum elsewhere": (tensor("w.sum", offset=0, storage="arena"), "must lie where sum_weight"),
    "an old sum": (op(UPDATE, inputs={"grad": "grad.w"}), "grad.w is read after another value"),
    "an old weight": (lambda b: b.ops.insert(0, b.ops.pop()), "is read before"),
    "over what is read": (over_itself, "m.shifted is written where m.left is read"),
    "in place, beside what is read": (in_place_of_a_neighbour, "m.new is written where m"),
    "twice into one element": (spread, "spread writes an element twice"),
    "rows backwards": (backwards, "x is no .* with contiguous rows"),
    "a bias too long": (tensor("b", shape=(5,)), r"bias must be \(4,\)"),
    "a weight for other channels": (tensor("w", shape=(4, 2, 3, 3)), "takes 2 channels, gets 3"),
    "channels that the weight lacks": (
        op(CONV, attributes={"out_channels": (1, 4)}), "out_channels",
    ),
    "a kernel that is not the weight's": (op(CONV, attributes={"kernel": (3, 2)}), "windows"),
    "a stride of nothing": (op(CONV, attributes={"strides": (0, 1)}), "strides"),
    "a result of another size": (tensor("y", shape=(1, 4, 8, 6)), "do not give"),
    "groups that do not divide": (op(CONV, attributes={"group": 2}), "group 2"),
    "a mask without a slope": (op(CONV, inputs={"mask": "y"}), "mask without mask_slope"),
    "a bias of nobody": (op(FIRST, attributes={"bias_of": "w"}), "bias_of 'w'"),
    "a bias of x": (op(FIRST, attributes={"bias_of": "x"}), r"bias must be \(3,\)"),
    "sources without the first": (
        lambda b: b.ops.__setitem__(
            FIRST, b.ops[FIRST].with_inputs(x2="image")), "not numbered on",
    ),
    "an unknown function": (op(POINT, attributes={"expression": (("fma", ()),)}), "no function"),
    "too few arguments": (
        op(POINT, attributes={"expression": (("add", (("x", 0),)),)}), "add of 1 arguments",
    ),
    "an input that is not there": (
        op(POINT, attributes={"expression": (("add", (("x", 0), ("x", 2))),)}), "step 0 of",
    ),
    "a step before its own": (
        op(POINT, attributes={"expression": (("add", (("x", 0), ("t", 0))),)}), "step 0 of",
    ),
    "an input that is not used": (op(POINT, attributes={"expression": COPY}), "is not used"),
    "no steps": (op(POINT, attributes={"expression": ()}), "0 steps"),
    "an input of another shape": (op(POINT, inputs={"x1": "top"}), "x1 must be"),
    "axes that are not there": (op(REDUCE, attributes={"axes": (3, 4)}), "axes"),
    "axes in disorder": (op(REDUCE, attributes={"axes": (3, 1)}), "axes"),
    "an unknown sum": (op(REDUCE, attributes={"how": "mean"}), "how 'mean'"),
    "factors that do not fit": (op(MATMUL, inputs={"b": "flat"}), "by"),
    "another scale": (op(RESIZE, attributes={"scale": 3}), "times 3 is not"),
    "another mode": (op(RESIZE, attributes={"mode": "cubic"}), "mode 'cubic'"),
    "a window too large": (op(AVERAGE, attributes={"kernel": (4, 2)}), "do not give"),
    "the gradient of another window": (op(LARGEST_GRAD, attributes={"strides": (1, 1)}), "windows"),
    "a frame too wide": (op(PAD, attributes={"pads": (0, 0, 1, 0, 0, 0, 0, 1)}), "is not"),
    "a reflection of more than there is": (
        op(PAD, attributes={"pads": (0, 0, 1, 8, 0, 0, 0, 0)}), "reflects more",
    ),
    "the adjoint of a constant": (op(PAD_GRAD, attributes={"mode": "constant"}), "mode"),
    "a loss of two sizes": (op(LOSS, inputs={"a": "top"}), "b must be"),
    "parts that do not join": (op(CONCAT, attributes={"axis": 2}), "do not make"),
    "an update of another shape": (op(UPDATE, inputs={"grad": "b.sum"}), "grad must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named(case: tuple[Callable[[Builder], Any], str]):
    change, said = case
    with pytest.raises(ValueError, match=said):
        check(broken(change))


def test_a_sound_program_passes():
    check(broken(lambda b: None))
    check(training_step())


def test_parts_of_one_base_may_be_written_one_by_one():
    b = whole()
    b.tensor("parts", (1, 4, 6, 8))
    for name, offset in (("upper", 0), ("lower", 96)):
        b.view(name, "parts", (1, 2, 6, 8), offset, (192, 48, 8, 1))
        b.pointwise(name, COPY, "top")
    b.tensor("after", (1, 4, 6, 8))
    b.pointwise("after", COPY, "parts")
    check(b.program("after"))


def test_an_elementwise_operation_may_work_in_place():
    b = whole()
    b.view("same", "z", (1, 4, 6, 8))
    b.pointwise("same", (("exp", (("x", 0),)),), "z")
    check(b.program("same"))


def test_weights_that_are_packed_have_the_engine_s_shape():
    b = Builder()
    b.tensor("image", (1, 3, 6, 8), storage="image")
    b.tensor("w", (4, 3, 3, 3), storage="weights")
    at = {key: PLAIN[key] for key in ("kernel", "strides", "pads", "dilations", "group")}
    at |= {"transposed": False, "out_channels": (1, 2)}
    b.op("pack_weights", {"weight": "w"}, {"y": b.tensor("packed", (128,))}, **at)
    b.conv("image", "packed", b.tensor("y", (1, 2, 6, 8)), {}, out_channels=(1, 2))
    check(b.program("y"))


def test_every_kind_is_checked():
    assert WANTS.keys() == KINDS.keys()
    assert Op("conv", {}, {}) == Op("conv", {}, {})
