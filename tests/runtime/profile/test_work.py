"""Amounts of work, counted tap by tap where the module multiplies."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.runtime.plan.ir import Op, Program, Tensor
from edgeadapt.runtime.profile.work import AMOUNTS, work_of

LANES = 4


def amounts(op: Op, program: Program, memory: int = 0) -> dict[str, float]:
    return dict(zip(AMOUNTS, work_of(op, program, LANES, memory).amounts, strict=True))


def conv(shape: tuple, y_shape: tuple, roles: tuple = (), **at: Any) -> tuple[Op, Program]:
    plain = {"kernel": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1),
             "group": 1, "transposed": False, "algorithm": "direct", "compute": "f32"}  # fmt: skip
    tensors = {"x0": Tensor("x0", shape), "y": Tensor("y", y_shape)}
    tensors |= {role: Tensor(role, y_shape) for role in roles}
    op = Op("conv", {name: name for name in ("x0", *roles)}, {"y": "y"}, plain | at)
    return op, Program(tensors, (op,), ())


def padded(width: int, step: int = LANES) -> int:
    return next(n for n in itertools.count(width) if n % step == 0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 40))
def test_a_direct_convolution_multiplies_every_tap_of_whole_vectors(
    inputs: int, outputs: int, height: int, width: int
) -> None:
    op, program = conv((1, inputs, height, width), (1, outputs, height, width), ("add0", "mask"))
    found = amounts(op, program, 77)
    taps = sum(1 for _ in itertools.product(range(inputs), range(outputs), range(3), range(3)))
    assert found["products"] == taps * height * padded(width)
    assert found["elements in"] == inputs * height * width
    assert found["elements out"] == outputs * height * padded(width)
    assert found["fused operands"] == 2 * outputs * height * width
    assert (found["bytes from memory"], found["call"]) == (77, 1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 40))
def test_winograds_algorithm_multiplies_36_times_for_16_outputs(
    inputs: int, outputs: int, height: int, width: int
) -> None:
    op, program = conv(
        (1, inputs, height, width), (1, outputs, height, width), algorithm="winograd"
    )
    squares = (padded(height, 4) // 4) * (padded(width, 4 * LANES) // 4)
    assert amounts(op, program)["products"] == 36 * squares * inputs * outputs


def test_a_transposed_convolution_multiplies_what_its_inputs_are_multiplied_with() -> None:
    # 4x4 with stride 2: each of 6 x 8 inputs meets 16 taps of each pair of channels.
    op, program = conv((1, 3, 6, 8), (1, 5, 12, 16), kernel=(4, 4), strides=(2, 2), transposed=True)
    assert amounts(op, program)["products"] == 6 * 8 * 16 * 3 * 5


def test_groups_divide_the_products() -> None:
    op, program = conv((1, 8, 4, 4), (1, 8, 4, 4), group=4)
    assert amounts(op, program)["products"] == 4 * 4 * 9 * 8 * 8 / 4


@pytest.mark.parametrize(
    ("kernel", "stride", "compute", "kind"),
    [
        ((3, 3), 1, "f32", "weight gradient by rows of three, f32"),
        ((3, 3), 2, "f32", "weight gradient, f32"),
        ((1, 1), 1, "f32", "weight gradient, f32"),
        ((3, 3), 1, "bf16", "weight gradient, bf16"),
    ],
)
def test_a_weight_gradient_multiplies_each_weight_with_each_pixel(
    kernel: tuple[int, int], stride: int, compute: str, kind: str
) -> None:
    tensors = {
        "x0": Tensor("x0", (1, 3, 10 * stride, 14 * stride)),
        "grad_y": Tensor("grad_y", (1, 5, 10, 14)),
        "weight": Tensor("weight", (5, 3, *kernel)),
    }
    at = {"kernel": kernel, "strides": (stride, stride), "compute": compute}
    op = Op("conv_weight_grad", {"x0": "x0", "grad_y": "grad_y"}, {"weight": "weight"}, at)
    program = Program(tensors, (op,), ())
    assert work_of(op, program, LANES, 0).kind == kind
    found = amounts(op, program)
    assert found["products"] == 5 * 3 * kernel[0] * kernel[1] * 10 * 16
    assert found["elements in"] == 3 * 10 * stride * 14 * stride
    assert found["fused operands"] == 15 * kernel[0] * kernel[1]


def test_classes_tell_apart_what_is_computed_and_what_is_stored() -> None:
    shape = (1, 3, 4, 4)
    op, program = conv(shape, shape, compute="bf16")
    assert work_of(op, program, LANES, 0).kind == "direct convolution, bf16, of f32"
    half = Program({**program.tensors, "x0": Tensor("x0", shape, "bf16")}, (op,), ())
    assert work_of(op, half, LANES, 0).kind == "direct convolution, bf16, of bf16"


def test_all_else_is_what_it_moves() -> None:
    tensors = {name: Tensor(name, (1, 3, 5, 7)) for name in ("x0", "x1", "y")}
    add = Op("pointwise", {"x0": "x0", "x1": "x1"}, {"y": "y"}, {"expression": ()})
    found = work_of(add, Program(tensors, (add,), ()), LANES, 9)
    assert found == ("elementwise", (0, 3 * 4 * 105, 0, 0, 9, 1))
