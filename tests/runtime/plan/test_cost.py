"""What operations cost, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.runtime.plan.cost import flops, total_flops, traffic
from support.programs import PLAIN, WINDOW, Builder

X, Y, HALF = (1, 6, 10, 12), (1, 4, 10, 12), (1, 6, 5, 6)
POOL = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
RESIZE = {"mode": "linear", "scale": 2}
REDUCE = {"how": "sum", "axes": (2, 3), "before": "square", "after": None, "scale": 1.0}
PIXELS = 120  # of x


def one(kind, inputs, outputs, **attributes):
    """A program of one operation; operands are role -> shape."""
    b = Builder()
    for role, shape in inputs.items():
        b.constant(role, np.zeros(shape))
    for role, shape in outputs.items():
        b.tensor(f"out.{role}", shape)
    roles = {role: f"out.{role}" for role in outputs}
    b.op(kind, {role: role for role in inputs}, roles, **attributes)
    return b.program(*roles.values())


CASES = {
    "conv": (
        ("conv", {"x0": X, "weight": (4, 6, 3, 3)}, {"y": Y}, PLAIN),
        2 * PIXELS * 4 * 6 * 9,
    ),
    "conv with what follows": (
        (
            "conv",
            {"x0": X, "weight": (4, 6, 3, 3), "bias": (4,), "add0": Y, "mask": Y},
            {"y": Y},
            {**PLAIN, "slope": 0.1, "mask_slope": 0.1},
        ),
        2 * PIXELS * 4 * 6 * 9 + 4 * 4 * PIXELS,
    ),
    "conv of two sources": (
        ("conv", {"x0": X, "x1": X, "weight": (4, 12, 3, 3)}, {"y": Y}, PLAIN),
        2 * PIXELS * 4 * 12 * 9,
    ),
    "conv by groups": (
        ("conv", {"x0": X, "weight": (4, 3, 3, 3)}, {"y": Y}, {**PLAIN, "group": 2}),
        2 * PIXELS * 4 * 3 * 9,
    ),
    "transposed conv": (
        (
            "conv",
            {"x0": HALF, "weight": (6, 4, 3, 3)},
            {"y": Y},
            {**PLAIN, "strides": (2, 2), "transposed": True},
        ),
        2 * (PIXELS // 4) * 4 * 6 * 9,
    ),
    "weight gradient": (
        (
            "conv_weight_grad",
            {"x0": X, "grad_y": Y, "sum_weight": (4, 6, 3, 3)},
            {"weight": (4, 6, 3, 3), "bias": (4,)},
            {**{key: PLAIN[key] for key in WINDOW}, "bias_of": "grad_y"},
        ),
        2 * PIXELS * 4 * 6 * 9 + 4 * 6 * 9 + 4 * PIXELS,
    ),
    "pointwise": (
        (
            "pointwise",
            {"x0": X},
            {"y": X},
            {"expression": (("abs", (("x", 0),)), ("sqrt", (("t", 0),)))},
        ),
        2 * 6 * PIXELS,
    ),
    "reduce": (("reduce", {"x": X}, {"y": (1, 6, 1, 1)}, REDUCE), 2 * 6 * PIXELS),
    "matmul": (("matmul", {"a": (5, 2, 3), "b": (5, 3, 7)}, {"y": (5, 2, 7)}, {}), 2 * 70 * 3),
    "resize": (("resize", {"x": HALF}, {"y": X}, RESIZE), 8 * 6 * PIXELS),
    "gradient of a resize": (
        ("resize_grad", {"grad_y": X, "add": HALF}, {"y": HALF}, RESIZE),
        8 * 6 * PIXELS + 6 * PIXELS // 4,
    ),
    "pool": (("avg_pool", {"x": X}, {"y": HALF}, POOL), 6 * PIXELS),
    "gradient of a pool": (("avg_pool_grad", {"grad_y": HALF}, {"y": X}, POOL), 6 * PIXELS),
    "loss": (
        (
            "l1_loss",
            {"a": X, "b": X},
            {"value": (), "grad": X},
            {"value_scale": 1.0, "grad_scale": 1.0},
        ),
        3 * 6 * PIXELS,
    ),
    "update": (
        ("update_sgd", {"weight": (9,), "grad": (9,)}, {"weight_new": (9,)}, {"step_size": 1.0}),
        18,
    ),
    "any other": (
        (
            "pad",
            {"x": HALF},
            {"y": X},
            {"pads": (0, 0, 2, 3, 0, 0, 3, 3), "mode": "edge", "value": 0.0},
        ),
        6 * PIXELS,
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES.keys())
def test_work(arguments, expected):
    kind, inputs, outputs, attributes = arguments
    program = one(kind, inputs, outputs, **attributes)
    assert flops(program.ops[0], program) == expected
    assert total_flops(program) == expected


def test_each_operand_crosses_to_memory_once():
    program = one("matmul", {"a": (5, 2, 3), "b": (5, 3, 7)}, {"y": (5, 2, 7)})
    assert traffic(program.ops[0], program) == 4 * (30 + 105 + 70)


def test_what_is_repeated_or_read_twice_is_moved_once():
    b = Builder()
    b.constant("bias", np.zeros(6)), b.tensor("y", X)
    b.view("wide", "bias", X, strides=(0, 1, 0, 0))
    b.pointwise("y", (("add", (("x", 0), ("x", 1))),), "wide", "wide")
    program = b.program("y")
    assert traffic(program.ops[0], program) == 4 * (6 + 6 * PIXELS)
