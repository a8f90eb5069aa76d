"""Each operator that is kept in float32, with an input that shows why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import pytest

from edgeadapt import casts
from edgeadapt.casts import cast_model
from support.rounding import rounded, run

HEAD = 'ir_version: 9, opset_import: ["" : 18]'
SIZE = 256


def parsed(inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    """A graph whose outputs have the shape that follows."""
    model = onnx.parser.parse_model(f"<{HEAD}> g ({inputs}) => ({outputs}) {{ {body} }}")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model)


@dataclass(frozen=True)
class Case:
    """A graph, operators in it of which each has to stay in float32, and what the result is off by.

    ``features`` are what a convolution gives, a float32 array, which 16 bits hold exactly.
    """

    operators: str
    body: str  # from `features` to `y`
    features: float | tuple[float, float]  # all the same, or between two
    bound: float = 1e-3  # relative to the largest element

    @property
    def model(self) -> onnx.ModelProto:
        return parsed(
            "float[1,3,H,W] image, float[1,3,1,1] weight",
            "float y",
            f"features = Conv(image, weight) {self.body}",
        )

    def feeds(self) -> dict[str, np.ndarray]:
        low, high = np.broadcast_to(self.features, (2,))
        image = np.random.default_rng(0).uniform(low, high, (1, 3, SIZE, SIZE))
        image = image.astype(np.float16).astype(np.float32)  # so that the input costs nothing
        return {"image": image, "weight": np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)}


CASES = {
    # The sum over an image: 65,536 values of 2 are more than float16 holds.
    "sum": Case("ReduceSum", "y = ReduceSum<keepdims=0>(features)", 2.0),
    # A mean is rounded to 11 bits: two steps of an adaptation have the same loss then.
    "loss": Case("ReduceMean", "y = ReduceMean<keepdims=0>(features)", (0.0, 1.0), 2e-5),
    "power": Case(
        "Pow", "two = Constant<value_float=2.0>() y = Pow(features, two)", (300.0, 400.0)
    ),
    "square": Case("Mul", "y = Mul(features, features)", (300.0, 400.0)),
    # log of a sum of exponentials: 12 is a usual logit, and exp(12) is beyond float16.
    "logits": Case(
        "Exp ReduceSum Log", "e = Exp(features) s = ReduceSum<keepdims=0>(e) y = Log(s)", (10, 12)
    ),
    "quotient": Case(
        "Div",
        "m = ReduceMean<keepdims=1>(features) one = Constant<value_float=1.0>() y = Div(one, m)",
        1e-5,
        bound=1e-2,
    ),
    "reciprocal": Case(
        "Reciprocal", "m = ReduceMean<keepdims=1>(features) y = Reciprocal(m)", 1e-5, bound=1e-2
    ),
    # A deviation of 0.001 has a variance that float16 holds with four bits.
    "deviation": Case(
        "Mul ReduceMean Sqrt",
        "s = Mul(features, features) m = ReduceMean<keepdims=1>(s) y = Sqrt(m)",
        0.0008,
    ),
    # GELU's tail: 1 + erf(-2) is 0.005, what is left of two numbers next to 1.
    "tail": Case("Erf", "e = Erf(features) one = Constant<value_float=1.0>() y = Add(one, e)",
                 (-2.1, -1.9)),
    # Attention over 65,536 pixels gives each 1.5e-5, which float16 holds with eight bits.
    "attention": Case(
        "Softmax",
        "flat = Flatten(features) s = Softmax<axis=1>(flat) t = ReduceMax<keepdims=0>(s) "
        "big = Constant<value_float=100000.0>() y = Mul(t, big)",
        (0.0, 0.3),
        bound=1e-4,
    ),
    # The gradient of a weight is such a product: 65,536 terms.
    "pixels": Case(
        "MatMul",
        "row = Flatten(features) column = Transpose<perm=[1,0]>(row) y = MatMul(row, column)",
        (1.0, 1.5),
    ),
}  # fmt: skip


def force(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    """As if the table allowed 16 bits for ``operator``."""
    original = casts._Caster._wants_half

    def wants_half(
        self: casts._Caster, node: onnx.NodeProto, inputs: list[str], outputs: list[str]
    ) -> bool:
        return node.op_type == operator or original(self, node, inputs, outputs)

    monkeypatch.setattr(casts._Caster, "_wants_half", wants_half)


def error(model: onnx.ModelProto, feeds: dict[str, np.ndarray], name: str = "y") -> float:
    """Largest, relative to the largest element of the float32 result."""
    expected = run(model, feeds)[name]
    actual = run(rounded(cast_model(model, "fp16")), feeds)[name]
    if not np.isfinite(actual).all():
        return np.inf
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_in_float32_is_right(name: str) -> None:
    assert error(CASES[name].model, CASES[name].feeds()) < CASES[name].bound


@pytest.mark.parametrize(
    ("name", "operator"),
    [(name, operator) for name, case in CASES.items() for operator in case.operators.split()],
)
def test_it_would_be_wrong_in_16_bits(
    name: str, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, operator)
    assert error(CASES[name].model, CASES[name].feeds()) > 2 * CASES[name].bound


# A residual of 1 % has 11 bits of its own; next to an image it would have 4.
RESIDUAL = parsed(
    "float[1,3,H,W] image, float[3,3,3,3] weight",
    "float y",
    """
    r = Conv<pads=[1,1,1,1]>(image, weight)
    low = AveragePool<kernel_shape=[2,2], strides=[2,2]>(image)
    scales = Constant<value_floats=[1.0,1.0,2.0,2.0]>()
    up = Resize<mode="linear">(low, "", scales)
    sum = Add(up, r)
    y = Sub(sum, image)
    """,
)


def residual_feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.uniform(0.5, 1.0, (1, 3, 32, 32)).astype(np.float32)
    weight = rng.uniform(-0.001, 0.001, (3, 3, 3, 3)).astype(np.float32)
    return {"image": image, "weight": weight}


def residual_error() -> float:
    feeds = residual_feeds()
    actual = run(rounded(cast_model(RESIDUAL, "fp16")), feeds)["y"]
    return float(np.abs(actual - run(RESIDUAL, feeds)["y"]).max())


def test_an_image_and_its_pyramid_stay_exact_under_a_residual() -> None:
    # The residual is at most 0.027; its inputs, weights and itself are rounded.
    assert residual_error() < 3 * 0.027 * 2.0**-11


@pytest.mark.parametrize("operator", ["AveragePool", "Resize", "Add", "Sub"])
def test_each_part_of_it_would_lose_the_residual(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, operator)
    assert residual_error() > 2.0**-13  # half of the spacing of float16 below 1 is 2^-12


CONSTANTS = Case(
    "",
    "small = Constant<value_float=1e-9>() large = Constant<value_float=1e9>() "
    "f = Mul(features, small) g = LeakyRelu<alpha=0.5>(f) y = Mul(g, large)",
    (1.0, 2.0),
)


def test_a_number_that_16_bits_cannot_hold_keeps_its_operator_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert error(CONSTANTS.model, CONSTANTS.feeds()) < 1e-6
    monkeypatch.setattr(casts._Caster, "_fits", lambda self, name: True)
    assert error(CONSTANTS.model, CONSTANTS.feeds()) > 0.5


# The backward pass of  loss = scale * mean((conv(leaky(conv(image, first))), second) - image)^2).
BACKWARD = """
    f = Conv(image, first)
    r = LeakyRelu<alpha=0.2>(f)
    y = Conv(r, second)
    e = Sub(y, image)
    e2 = Mul(e, e)
    mean = ReduceMean<keepdims=0>(e2)
    loss = Mul(mean, scale)
    count_i = Size(image)
    count = Cast<to=1>(count_i)
    factor = Div(scale, count)
    g = Mul(e, factor)
    g_r = ConvTranspose(g, second)
    zero = Constant<value_float=0.0>()
    alpha = Constant<value_float=0.2>()
    positive = Greater(f, zero)
    g_less = Mul(g_r, alpha)
    g_f = Where(positive, g_r, g_less)
    GRADIENT
    axes = Constant<value_ints=[0,2,3]>()
    "grad.bias" = ReduceSum<keepdims=0>(g_f2, axes)
    long = Constant<value_ints=[0,0,-1]>()
    x3 = Reshape(image, long)
    g3 = Reshape(g_f2, long)
    g3t = Transpose<perm=[0,2,1]>(g3)
    "grad.first" = MatMul(x3, g3t)
"""


def backward(gradient: str = "g_f2 = Identity(g_f)") -> onnx.ModelProto:
    return parsed(
        "float[1,3,H,W] image, float[4,3,1,1] first, float[3,4,1,1] second, float scale",
        'float loss, float "grad.first", float "grad.bias"',
        BACKWARD.replace("GRADIENT", gradient),
    )


def backward_feeds(scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.uniform(-1, 1, (1, 3, SIZE, SIZE)).astype(np.float32),
        "first": rng.uniform(-1, 1, (4, 3, 1, 1)).astype(np.float32),
        "second": rng.uniform(-1, 1, (3, 4, 1, 1)).astype(np.float32),
        "scale": np.array(scale, np.float32),
    }


def gradient_error(model: onnx.ModelProto, scale: float, brighter: float = 0.0) -> float:
    feeds = backward_feeds(scale)
    feeds["image"] += np.float32(brighter)
    expected, actual = run(model, feeds), run(rounded(cast_model(model, "fp16")), feeds)
    found = [
        np.linalg.norm(actual[name] - expected[name]) / np.linalg.norm(expected[name])
        for name in ("grad.first", "grad.bias")
    ]
    return float(np.nan_to_num(max(found), nan=np.inf))


# The gradient of a pixel is 1e-9, 5e-8, 5e-6 or 5e4 times the error.
SCALES = [2e-4, 1e-2, 1.0, 1e10]


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_of_any_size_keep_their_bits(scale: float) -> None:
    assert gradient_error(backward(), scale) < 2.0**-10


@pytest.mark.parametrize("scale", [2e-4, 1e-2, 1e10])
def test_without_the_factor_they_are_lost(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeadapt.cast_factor._needs_factor", lambda precision: False)
    assert gradient_error(backward(), scale) > 2.0**-7


def test_names_of_a_users_are_not_taken() -> None:
    model = backward()
    theirs = {
        "f": "gradient.factor",
        "r": "gradient.reciprocal",
        "e": "g.fp16",
        "y": "g.times",
        "zero": "g.size",
        "mean": "g.largest",
        "g_r": "image.fp16",
    }
    for node in model.graph.node:
        node.input[:] = [theirs.get(name, name) for name in node.input]
        node.output[:] = [theirs.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    assert gradient_error(model, 1.0) == gradient_error(backward(), 1.0)


def test_gradients_that_are_all_negative_are_as_large() -> None:
    model = backward()
    model.graph.node[3].input[:] = ["y", "far"]  # the error, from 50 times the image
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["image", "fifty"], ["far"]))
    fifty = onnx.numpy_helper.from_array(np.array(50, np.float32), "fifty")
    model.graph.initializer.append(fifty)
    assert gradient_error(model, 1e-2, brighter=2.0) < 2.0**-10


def test_gradients_that_are_all_zero_stay_so() -> None:
    feeds = backward_feeds(0.0)
    found = run(rounded(cast_model(backward(), "fp16")), feeds)
    assert not found["grad.first"].any()
    assert not found["grad.bias"].any()


@pytest.mark.parametrize(
    "gradient",
    [
        "g_f2 = Tanh(g_f)",
        "g_f2 = Mul(g_f, g_less)",
        "g_f2 = Add(g_f, f)",
        "s = Sigmoid(g_f) g_f2 = Add(s, f)",
        "m = Mul(g_f, f) g_f2 = Sub(m, g_less)",
        "g_f2 = Max(g_f, alpha)",
        # What is made of a gradient's size only: it cannot decide the factor, which comes before.
        "shape = Shape(g_f) n_i = Size(g_f) n = Cast<to=1>(n_i) one = Constant<value_float=1.0>() "
        "q = Div(one, n) h = Expand(q, shape) three = Conv(h, second) d = Conv(three, first) "
        "g_f2 = Add(g_f, d)",
        # A bias is added to the gradient, and has no factor.
        "c = Constant<value_ints=[1]>() k = ReduceSum<keepdims=1>(first, c) "
        "flat = Constant<value_ints=[-1]>() b = Reshape(k, flat) "
        "g_f2 = Conv<group=4>(g_f, k, b)",
    ],
)
def test_what_is_not_linear_in_a_gradient_does_not_see_the_factor(gradient: str) -> None:
    assert gradient_error(backward(gradient), 1.0) < 4e-3


def test_an_activation_that_only_the_backward_pass_reads_has_no_factor() -> None:
    """As large as an image, it would leave the gradients none."""
    turned = (
        "t = Transpose<perm=[0,1,3,2]>(image) k = ReduceMax<keepdims=0>(t) c = Conv(t, first) "
        "s = Tanh(c) g_f2 = Mul(g_f, s)"
    )
    assert gradient_error(backward(turned), 1e-2) < 2.0**-8


@pytest.mark.parametrize(
    "gradient", ["g_f2 = Max(g_f, zero)", "g_f2 = Where(positive, g_r, zero)", "g_f2 = Neg(g_f)"]
)
def test_a_zero_is_a_gradient_too(gradient: str) -> None:
    assert "g_f2.fp16" in {
        name for node in cast_model(backward(gradient), "fp16").graph.node for name in node.output
    }
    assert gradient_error(backward(gradient), 1e-2) < 2.0**-10


def test_an_operator_that_the_table_does_not_know_is_kept_in_float32() -> None:
    case = Case("", "y = Celu(features)", (-2.0, 2.0))
    cast = cast_model(case.model, "fp16")
    assert [node.op_type for node in cast.graph.node].count("Cast") == 3
    assert error(case.model, case.feeds()) < 1e-6


def test_the_factor_is_in_front_of_all_that_it_should_be() -> None:
    """A count, so that a product that silently leaves 16 bits is seen."""
    nodes = cast_model(backward(), "fp16").graph.node
    half = {name for node in nodes for name in node.output if name.endswith(".fp16")}
    assert {"f.fp16", "r.fp16", "y.fp16", "g.fp16", "g_r.fp16", "g_less.fp16", "g_f.fp16"} <= half
    assert sum(node.op_type == "ReduceMax" for node in nodes) == 1
