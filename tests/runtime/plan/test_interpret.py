"""The interpreter that the plan is held to: its operations against plain loops and identities."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgeadapt.runtime.plan.kinds import FUNCTIONS, KINDS
from support.interpret import run
from support.interpret_kinds import COMPUTE, POINTWISE
from support.programs import PLAIN, WINDOW, Builder

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((1, 3, 6, 7))
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums of a few hundred products

WINDOWS = {
    "3x3": {},
    "stride 2": {"strides": (2, 2)},
    "uneven": {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2)},
    "cut": {"kernel": (2, 2), "pads": (-1, 0, 0, -2)},
    "groups": {"group": 3},
    "5x5": {"kernel": (5, 5), "pads": (2, 2, 2, 2)},
}


def compute(kind, inputs, y_shape, output="y", **attributes):
    """One operation on arrays, through constants."""
    b = Builder()
    for role, value in inputs.items():
        b.constant(role, np.asarray(value))
    b.tensor("result", y_shape)
    b.op(kind, {role: role for role in inputs}, {output: "result"}, **attributes)
    return run(b.program("result"), IMAGE, {})["result"]


def conv_by_loops(x, weight, at):
    """The definition, one product after the other."""
    (sh, sw), (dh, dw), (top, left, bottom, right) = at["strides"], at["dilations"], at["pads"]
    outputs, inputs, kh, kw = weight.shape
    _, _, height, width = x.shape
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((1, outputs, rows, columns))
    for o, i, j, c, u, v in product(*map(range, (outputs, rows, columns, inputs, kh, kw))):
        row, column = i * sh + u * dh - top, j * sw + v * dw - left
        if 0 <= row < height and 0 <= column < width:
            channel = c + inputs * (o // (outputs // at["group"]))
            y[0, o, i, j] += weight[o, c, u, v] * x[0, channel, row, column]
    return y


@pytest.fixture(params=WINDOWS.values(), ids=WINDOWS.keys())
def convolution(request):
    """Attributes, x, weight, y of one convolution."""
    at = {**PLAIN, **request.param}
    weight = RNG.standard_normal((6, 3 // at["group"], *at["kernel"]))
    return at, IMAGE, weight, conv_by_loops(IMAGE, weight, at)


def test_it_knows_every_kind_and_function():
    assert set(COMPUTE) == set(KINDS)
    assert set(POINTWISE) == set(FUNCTIONS)


def test_a_convolution_follows_its_definition(convolution):
    at, x, weight, y = convolution
    found = compute("conv", {"x0": x, "weight": weight}, y.shape, **at)
    np.testing.assert_allclose(found, y, **EXACT)


def test_a_transposed_convolution_is_the_adjoint_in_x(convolution):
    at, x, weight, y = convolution
    grad_y = RNG.standard_normal(y.shape)
    transposed = {**at, "transposed": True}
    grad_x = compute("conv", {"x0": grad_y, "weight": weight}, x.shape, **transposed)
    np.testing.assert_allclose((grad_x * x).sum(), (grad_y * y).sum(), rtol=1e-10)


def test_the_weight_gradient_is_the_adjoint_in_the_weight(convolution):
    at, x, weight, y = convolution
    grad_y = RNG.standard_normal(y.shape)
    inputs = {"x0": x, "grad_y": grad_y}
    window = {key: at[key] for key in WINDOW}
    found = compute("conv_weight_grad", inputs, weight.shape, "weight", bias_of="grad_y", **window)
    np.testing.assert_allclose((found * weight).sum(), (grad_y * y).sum(), rtol=1e-10)


def test_a_convolution_reads_its_sources_one_behind_the_other():
    weight = RNG.standard_normal((2, 3, 3, 3))
    parts = {"x0": IMAGE[:, :1], "x1": IMAGE[:, 1:], "weight": weight}
    whole = compute("conv", {"x0": IMAGE, "weight": weight}, (1, 2, 6, 7), **PLAIN)
    np.testing.assert_array_equal(compute("conv", parts, (1, 2, 6, 7), **PLAIN), whole)


def test_the_steps_after_a_convolution_come_in_their_order():
    weight = RNG.standard_normal((2, 3, 3, 3))
    y = conv_by_loops(IMAGE, weight, PLAIN)
    extra = {role: RNG.standard_normal(y.shape) for role in ("add0", "add1", "post", "mask")}
    bias = np.array([0.5, -2.0])
    at = {**PLAIN, "slope": 0.1, "mask_slope": 0.3}
    found = compute("conv", {"x0": IMAGE, "weight": weight, "bias": bias, **extra}, y.shape, **at)
    y = y + bias[None, :, None, None] + extra["add0"] + extra["add1"]
    y = np.where(y > 0, y, 0.1 * y) + extra["post"]
    np.testing.assert_allclose(found, np.where(extra["mask"] > 0, y, 0.3 * y), **EXACT)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_out_channels_are_some_of_the_weights(transposed, packed):
    shape = (3, 5, 3, 3) if transposed else (5, 3, 3, 3)
    at = {**PLAIN, "transposed": transposed}
    weight = RNG.standard_normal(shape)
    whole = compute("conv", {"x0": IMAGE, "weight": weight}, (1, 5, 6, 7), **at)
    at["out_channels"] = (1, 2)
    b = Builder()
    b.tensor("image", IMAGE.shape, storage="image")
    name = b.constant("weight", weight)
    if packed:
        b.tensor("packed", (100,))
        chosen = {k: at[k] for k in (*WINDOW, "transposed", "out_channels")}
        name = b.op("pack_weights", {"weight": name}, {"y": "packed"}, **chosen)
    b.conv("image", name, b.tensor("y", (1, 2, 6, 7)), {}, **at)
    found = run(b.program("y"), IMAGE, {})["y"]
    np.testing.assert_allclose(found, whole[:, 1:3], **EXACT)


def test_bias_gradients_and_running_sums():
    grad_y, sums = RNG.standard_normal((1, 2, 6, 7)), RNG.standard_normal((2, 3, 3, 3))
    b = Builder()
    b.constant("x", IMAGE), b.constant("grad_y", grad_y), b.constant("sum", sums)
    b.constant("before", np.array([1.0, 2.0, 3.0]))
    b.tensor("weight", sums.shape), b.tensor("bias", (3,)), b.tensor("alone", sums.shape)
    window = {key: PLAIN[key] for key in WINDOW}
    base = {"x0": "x", "grad_y": "grad_y"}
    b.op("conv_weight_grad", base, {"weight": "alone"}, bias_of="grad_y", **window)
    b.op(
        "conv_weight_grad", {**base, "sum_weight": "sum", "sum_bias": "before"},
        {"weight": "weight", "bias": "bias"}, bias_of="x", **window,
    )  # fmt: skip
    found = run(b.program("weight", "bias", "alone"), IMAGE, {})
    np.testing.assert_allclose(found["weight"], found["alone"] + sums, **EXACT)
    np.testing.assert_allclose(found["bias"], IMAGE.sum((0, 2, 3)) + np.arange(1, 4), **EXACT)


X, Y = RNG.standard_normal((2, 3)), RNG.standard_normal((2, 3))
FORMULAS = {
    "neg": -X, "abs": abs(X), "sign": np.sign(X), "reciprocal": 1 / X, "exp": np.exp(X),
    "sin": np.sin(X), "cos": np.cos(X), "tanh": np.tanh(X), "sigmoid": 1 / (1 + np.exp(-X)),
    "softplus": np.log1p(np.exp(X)), "floor": np.floor(X), "round": np.round(X), "copy": X,
    "add": X + Y, "sub": X - Y, "mul": X * Y, "div": X / Y, "max": np.maximum(X, Y),
    "min": np.minimum(X, Y), "gt": X > Y, "ge": X >= Y, "lt": X < Y, "le": X <= Y, "eq": X == Y,
    "ne": X != Y, "where": Y, "leaky": np.where(X > 0, X, Y * X),
    "leaky_grad": np.where(Y > 0, X, Y * X),
}  # fmt: skip


@pytest.mark.parametrize("function", FORMULAS)
def test_functions_of_a_pointwise_expression(function):
    arguments = [("x", 0), ("x", 1), ("x", 1)][: FUNCTIONS[function]]
    found = compute("pointwise", {"x0": X, "x1": Y}, X.shape, expression=((function, arguments),))
    np.testing.assert_allclose(found, FORMULAS[function], **EXACT)


def test_steps_constants_and_conditions_of_an_expression():
    expression = (
        ("gt", (("x", 0), ("c", 0.5))),
        ("not", (("t", 0),)),
        ("and", (("t", 1), ("x", 1))),
        ("pow", (("x", 0), ("c", 2))),
        ("where", (("t", 2), ("t", 3), ("c", 7))),
    )
    inputs = {"x0": X, "x1": np.array([[0, 1, 1], [1, 0, 1]])}
    found = compute("pointwise", inputs, X.shape, expression=expression)
    np.testing.assert_allclose(found, np.where((X <= 0.5) & (inputs["x1"] > 0), X**2, 7), **EXACT)


def test_a_reduction_scales_before_the_root():
    at = {"how": "sum", "axes": (1, 3), "before": "square", "after": "sqrt", "scale": 0.25}
    found = compute("reduce", {"x": IMAGE}, (1, 1, 6, 1), **at)
    expected = np.sqrt(0.25 * (IMAGE**2).sum((1, 3), keepdims=True))
    np.testing.assert_allclose(found, expected, **EXACT)


def test_products_of_matrices():
    a, b = RNG.standard_normal((1, 2, 3)), RNG.standard_normal((4, 3, 5))
    np.testing.assert_allclose(compute("matmul", {"a": a, "b": b}, (4, 2, 5)), a @ b, **EXACT)


ROW = np.array([1.0, 3.0, 5.0, 9.0])[None, None, None]
RESIZED = {
    ("linear", 2): [1, 1.5, 2.5, 3.5, 4.5, 6, 8, 9],
    ("linear", 0.5): [2, 7],
    ("nearest", 2): [1, 1, 3, 3, 5, 5, 9, 9],
    ("nearest", 0.5): [1, 5],
}


@pytest.mark.parametrize(("mode", "scale"), RESIZED)
def test_resize_and_its_adjoint(mode, scale):
    x = np.repeat(ROW, 4, axis=2)
    y = compute("resize", {"x": x}, (1, 1, int(4 * scale), int(4 * scale)), mode=mode, scale=scale)
    np.testing.assert_allclose(y[0, 0, 0], RESIZED[mode, scale], **EXACT)
    x, grad_y, add = RNG.standard_normal(x.shape), RNG.standard_normal(y.shape), x
    y = compute("resize", {"x": x, "add": grad_y}, y.shape, mode=mode, scale=scale) - grad_y
    inputs = {"grad_y": grad_y, "add": add}
    grad_x = compute("resize_grad", inputs, x.shape, mode=mode, scale=scale) - add
    np.testing.assert_allclose((grad_x * x).sum(), (grad_y * y).sum(), rtol=1e-10)


def test_pooling_counts_pads_as_zeros_or_not_at_all():
    at = {"kernel": (1, 3), "strides": (1, 2), "pads": (0, 1, 0, 0)}
    found = compute("avg_pool", {"x": ROW}, (1, 1, 1, 2), **at)
    np.testing.assert_allclose(found[0, 0, 0], [4 / 3, 17 / 3], **EXACT)
    found = compute("max_pool", {"x": -ROW}, (1, 1, 1, 2), dilations=(1, 1), **at)
    np.testing.assert_allclose(found[0, 0, 0], [-1, -3], **EXACT)
    grad_y = np.array([[[[2.0, 3.0]]]])
    found = compute("avg_pool_grad", {"grad_y": grad_y}, ROW.shape, **at)
    np.testing.assert_allclose(found[0, 0, 0], [2 / 3, 5 / 3, 1, 1], **EXACT)


def test_the_gradient_of_a_largest_value_goes_to_the_first():
    x, grad_y = np.array([[[[4.0, 4.0, 1.0, 2.0]]]]), np.array([[[[5.0, 7.0]]]])
    at = {"kernel": (1, 2), "strides": (1, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    found = compute("max_pool_grad", {"grad_y": grad_y, "x": x}, x.shape, **at)
    np.testing.assert_array_equal(found[0, 0, 0], [5, 0, 0, 7])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_and_its_adjoint(mode):
    begin, end = (0, 0, 2, 1), (0, 0, 3, 2)
    options = {"constant_values": 4.0} if mode == "constant" else {}
    y = np.pad(IMAGE, list(zip(begin, end, strict=True)), mode, **options)
    at = {"pads": (*begin, *end), "mode": mode, "value": 4.0}
    np.testing.assert_array_equal(compute("pad", {"x": IMAGE}, y.shape, **at), y)
    if mode != "constant":
        grad_y = RNG.standard_normal(y.shape)
        grad_x = compute("pad_grad", {"grad_y": grad_y}, IMAGE.shape, **at)
        np.testing.assert_allclose((grad_x * IMAGE).sum(), (grad_y * y).sum(), rtol=1e-10)


def test_negative_padding_cuts():
    at = {"pads": (0, 0, -1, 2, 0, 0, -2, -1), "mode": "constant", "value": 0.0}
    expected = np.pad(IMAGE[:, :, 1:-2, :-1], [(0, 0), (0, 0), (0, 0), (2, 0)])
    np.testing.assert_array_equal(compute("pad", {"x": IMAGE}, expected.shape, **at), expected)


def test_the_loss_and_its_gradient():
    a, b = np.array([1.0, 2.0, 5.0]), np.array([4.0, 2.0, 3.0])
    builder = Builder()
    builder.constant("a", a), builder.constant("b", b)
    builder.tensor("value", ()), builder.tensor("grad", (3,))
    roles = {"value": "value", "grad": "grad"}
    builder.op("l1_loss", {"a": "a", "b": "b"}, roles, value_scale=0.5, grad_scale=3.0)
    found = run(builder.program("value", "grad"), IMAGE, {})
    assert found["value"] == 2.5
    np.testing.assert_array_equal(found["grad"], [-3, 0, 3])


def test_views_lie_within_their_base():
    b = Builder()
    b.tensor("whole", (2, 3)), b.constant("x", np.arange(3.0)), b.constant("z", np.arange(3.0, 6.0))
    b.view("first", "whole", (3,)), b.view("second", "whole", (3,), offset=3)
    b.view("back", "whole", (3, 2, 2), offset=5, strides=(-1, -3, 0))
    b.tensor("y", (3, 2, 2))
    for source, part in (("x", "first"), ("z", "second")):
        b.pointwise(part, (("copy", (("x", 0),)),), source)
    b.pointwise("y", (("neg", (("x", 0),)),), "back")
    found = run(b.program("y", "whole"), IMAGE, {})
    np.testing.assert_array_equal(found["whole"], [[0, 1, 2], [3, 4, 5]])
    expected = -np.stack([[[5, 5], [2, 2]], [[4, 4], [1, 1]], [[3, 3], [0, 0]]])
    np.testing.assert_array_equal(found["y"], expected)
    b.view("outside", "whole", (3,), offset=4)
    b.pointwise("y", (("copy", (("x", 0),)),), "outside")
    with pytest.raises(ValueError, match="outside is not within whole: 4 to 6"):
        run(b.program("y"), IMAGE, {})


def test_what_was_never_written_is_nan_even_through_a_condition():
    b = Builder()
    b.tensor("nothing", (2,)), b.tensor("y", (2,))
    b.pointwise("y", (("where", (("x", 0), ("c", 1), ("c", 2))),), "nothing")
    assert np.isnan(run(b.program("y"), IMAGE, {})["y"]).all()


def test_an_update_replaces_the_weight_for_those_who_read_it_later():
    b = Builder()
    b.tensor("other", (3,), storage="weights"), b.tensor("weight", (2,), storage="weights")
    (
        b.same_place("weight.new", "weight"),
        b.constant("grad", np.array([1.0, 2.0])),
        b.tensor("y", (2,)),
    )
    roles = {"weight": "weight", "grad": "grad"}
    b.op("update_sgd", roles, {"weight_new": "weight.new"}, step_size=0.5)
    b.pointwise("y", (("copy", (("x", 0),)),), "weight")
    values = {"weight": np.array([3.0, 3.0]), "other": np.zeros(3), "unused": np.zeros(9)}
    found = run(b.program("weight.new", "y", "other"), IMAGE, values)
    np.testing.assert_array_equal(found["weight.new"], [2.5, 2.0])
    np.testing.assert_array_equal(found["y"], [2.5, 2.0])
    np.testing.assert_array_equal(found["other"], 0)


def test_a_memory_plan_that_gives_away_too_early_shows():
    b = Builder()
    b.tensor("image", IMAGE.shape, storage="image")
    for name in ("a", "b", "y"):
        b.tensor(name, IMAGE.shape)
    b.pointwise("a", (("mul", (("x", 0), ("c", 2))),), "image")
    b.pointwise("b", (("mul", (("x", 0), ("c", 3))),), "image")
    b.pointwise("y", (("add", (("x", 0), ("x", 1))),), "a", "b")
    size = 4 * IMAGE.size
    program = b.program("y")
    good = run(program, IMAGE, {}, {"a": 0, "b": size, "y": 0})
    np.testing.assert_allclose(good["y"], 5 * IMAGE, **EXACT)
    bad = run(program, IMAGE, {}, {"a": 0, "b": size - 4, "y": 2 * size})
    assert not np.allclose(bad["y"], 5 * IMAGE)


def test_a_result_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"result is \(1, 3, 6, 6\), computed \(1, 3, 6, 7\)"):
        compute(
            "avg_pool", {"x": IMAGE}, (1, 3, 6, 6), kernel=(1, 1), strides=(1, 1), pads=(0,) * 4
        )
