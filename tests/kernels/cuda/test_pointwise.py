"""Expressions of csrc/pointwise.cu: each function alone, then chains of them in every layout."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.pointwise import pointwise
from edgeadapt.kernels.cuda.steps import SLOTS, encode
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.pointwise import FUNCTIONS, MAX_STEPS
from edgeadapt.kernels.reference import pointwise as reference
from support.strided import Layout, fill, random_layout, wide

# Units in the last place: half of one for what is rounded once; what CUDA's mathematical functions
# may be off by according to its programming guide, and what is made of them.
ULPS = {"exp": 2, "log": 1, "sin": 2, "cos": 2, "tanh": 2, "erf": 2, "pow": 4}
ULPS |= {"sigmoid": 4.5, "softplus": 4.5}
TINY = float(np.finfo(np.float32).tiny)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 2.5, -2.5, 0.49999997, 3e38, TINY]
SPECIAL += [-TINY / 64, 1e-30, 88.8, -88.0, -103.0, 8388609.0, 2147483648.0]
TYPES = ["f32", "f16", "bf16", "bool"]


def single(function):
    return [(function, tuple(("x", i) for i in range(FUNCTIONS[function])))]


def describe(inputs, y, expression, scratch=0):
    given = [TensorArgs.of(x) for x in inputs]
    return pointwise(given, TensorArgs.of(y), expression, scratch=scratch)


def kernel_of(inputs, y, expression):
    (launch,) = describe(inputs, y, expression).launches
    return launch.kernel


def assert_within(y, expected, ulps):
    """At most ``ulps`` units in the last place of the exact value; NaN and infinities are equal."""
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(rounded))
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(y[~finite], rounded[~finite])
    error = np.abs(y[finite] - expected[finite]) / np.spacing(np.abs(rounded[finite]))
    worst = int(np.argmax(error))
    assert error[worst] <= ulps, f"{error[worst]:.2f} ulp: {y[finite][worst]!r}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_alone_equals_the_reference(function, run, guarded):
    rng = np.random.default_rng(list(FUNCTIONS).index(function))
    count = FUNCTIONS[function]
    corners = np.meshgrid(*[SPECIAL[:: 1 if count < 3 else 2]] * count)
    scale = rng.choice([1e-3, 1, 1, 30], (count, 203))  # one chunk is not whole
    values = [
        np.concatenate([corner.ravel(), row]).astype(np.float32)
        for corner, row in zip(corners, rng.standard_normal((count, 203)) * scale, strict=True)
    ]
    inputs = [guarded(value.shape, fill=value) for value in values]
    y = guarded(values[0].shape)
    run(lambda scratch: describe(inputs, y, single(function), scratch))
    expected = reference.evaluate(single(function), [wide(x) for x in inputs])
    assert_within(y, expected, ULPS.get(function, 0.5000001))


# Functions whose results on quarters of whole numbers are exact in float32.
EXACT = ["copy", "neg", "abs", "sign", "floor", "round", "not", "add", "sub", "max", "min", "gt"]
EXACT += ["ge", "lt", "le", "eq", "ne", "and", "or", "where"]
SHAPES = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5, 8, 17, 40]), max_size=6).filter(
    lambda shape: prod(shape) <= 1500
)


@st.composite
def expressions(draw, inputs):
    """Up to 24 steps, exact in float32: sums double at most, so ten of them at most."""
    steps, sums = [], 0
    for position in range(draw(st.sampled_from([1, 1, 2, 5, 24]))):
        places = [("x", i) for i in range(inputs)] + [("t", k) for k in range(position)]
        places += [("c", 0.5), ("c", -2.0), ("c", 0.0)]
        function = draw(st.sampled_from(EXACT))
        sums += function in ("add", "sub")
        if sums > 10 and function in ("add", "sub"):
            function = "max"
        chosen = [draw(st.sampled_from(places)) for _ in range(FUNCTIONS[function])]
        steps.append((function, tuple(chosen)))
    return steps


def quietly(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@quietly(60)
@given(data=st.data(), shape=SHAPES, inputs=st.integers(0, 8), seed=st.integers(0, 2**31))
def test_chains_in_any_layout_equal_the_reference(device, data, shape, inputs, seed):
    rng = np.random.default_rng(seed)
    expression = data.draw(expressions(inputs))
    given = [random_input(device, tuple(shape), rng) for _ in range(inputs)]
    y = device.array(tuple(shape), random_layout(rng, len(shape)), str(rng.choice(TYPES)))
    device.run(lambda scratch: describe(given, y, expression, scratch))
    expected = np.broadcast_to(reference.evaluate(expression, [wide(x) for x in given]), shape)
    assert_stored(y, expected)
    forget(device)


def random_input(device, shape, rng):
    """Quarters of small numbers of any type in any layout, repeated along some axes."""
    repeated = rng.random(len(shape)) < 0.2
    real = tuple(1 if once else n for n, once in zip(shape, repeated, strict=True))
    values = rng.integers(-9, 10, real) / 4
    layout = random_layout(rng, len(shape))
    return np.broadcast_to(device.array(real, layout, str(rng.choice(TYPES)), values), shape)


def forget(device):
    """Free the arrays of one example."""
    device.guards.close()
    device._placed.clear()


def assert_stored(y, expected):
    wanted = np.empty(y.shape, y.dtype)
    fill(wanted, expected.astype(np.float32))
    np.testing.assert_array_equal(y, wanted)


X = [("x", i) for i in range(4)]
SUM = [("add", (X[0], X[1])), ("add", (X[2], ("t", 0))), ("add", (("t", 1), X[3]))]
SIMPLE = {
    "pointwise_copy": [("copy", (X[0],))],
    "pointwise_sum": SUM[:1],
    "pointwise_long_sum": SUM,
    "pointwise_multiply": [("mul", (("c", 0.3), X[0]))],
    "pointwise_leaky": [("leaky", (X[0], ("c", 0.2)))],
    "pointwise_leaky_grad": [("leaky_grad", (X[1], X[0], ("c", -0.2)))],
    "pointwise": [("neg", (X[0],)), ("leaky_grad", (("t", 0), X[1], ("c", 0.2)))],
}
# Whole chunks; a row that ends in a part of one; too short for one; more than one block.
SIZES = [(1, 8, 3, 5), (1, 5, 3, 7), (1, 3, 2, 2), (1, 1, 1, 1), (1, 4, 20, 33)]


@pytest.mark.parametrize("kernel", SIMPLE)
@pytest.mark.parametrize("layouts", ["nhwc nhwc", "strided nhwc", "nchw nchw", "nchw nhwc"])
def test_what_plans_hold_in_every_layout_and_type(kernel, layouts, run, guarded, rng):
    expression, (first, other) = SIMPLE[kernel], layouts.split()
    for number, shape in enumerate(SIZES):
        types = [TYPES[:3][(number + k) % 3 if number else 0] for k in range(3)]
        x = [
            guarded(shape, first if k == 0 else other, types[k % 2], rng.standard_normal(shape))
            for k in range(4)
        ]
        x = x[: 1 + max(v for _, given in expression for place, v in given if place == "x")]
        y = guarded(shape, other, types[2])
        expected = reference.evaluate(expression, [wide(v) for v in x])
        assert kernel_of(x, y, expression) == kernel
        run(lambda scratch, x=x, y=y: describe(x, y, expression, scratch))
        magnitude = sum(abs(wide(v)) for v in x)
        assert_rounded(y, expected, magnitude, 3)


def assert_rounded(y, expected, magnitude, roundings):
    """Within some roundings of float32 and the one of y's type."""
    last = {"float32": 2.0**-24, "float16": 2.0**-11, "uint16": 2.0**-8}[y.dtype.name]
    allowed = roundings * 2.0**-24 * magnitude + last * np.abs(expected) + 2.0**-25
    assert (np.abs(wide(y) - expected) <= allowed).all()


@pytest.mark.parametrize("dtype", TYPES[:3])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_sum_may_hold_an_input_twice_and_is_added_in_order(dtype, count, run, guarded, rng):
    values = rng.standard_normal((3, 37)) * [[1e4], [1.0], [1e-3]]
    x = [guarded((37,), "nchw", dtype, value) for value in values]
    order = [0, 1, 2, 1][:count]
    expression = [("add", (X[order[0]], X[order[1]]))]
    expression += [("add", (X[i], ("t", k))) for k, i in enumerate(order[2:])]
    y = guarded((37,))
    kernel = "pointwise_sum" if count == 2 else "pointwise_long_sum"
    assert kernel_of(x, y, expression) == kernel
    run(lambda scratch: describe(x, y, expression, scratch))
    total = wide(x[order[0]]).astype(np.float32)
    for i in order[1:]:
        total = total + wide(x[i]).astype(np.float32)
    np.testing.assert_array_equal(y, total)


@pytest.mark.parametrize("dtype", TYPES[:3])
@pytest.mark.parametrize("kernel", SIMPLE)
@pytest.mark.parametrize("shape", [(3, 5, 40), (5, 9, 7)], ids=["whole", "odd"])
def test_in_place(kernel, dtype, shape, run, guarded, rng):
    layout = Layout((0, 1, 2), (1, 1, 1), (0, 2, 0))  # rows of neighbours, planes with gaps
    x = [guarded(shape, layout, dtype, rng.integers(-9, 9, shape) / 4) for _ in range(4)]
    expected = reference.evaluate(SIMPLE[kernel], [wide(v) for v in x])
    run(lambda scratch: describe(x, x[0], SIMPLE[kernel], scratch))
    assert_rounded(x[0], expected, np.abs(expected), 2)


@pytest.mark.parametrize("types", [("f32", "f32"), ("f32", "f16"), ("bf16", "f32"), ("bool",) * 2])
@pytest.mark.parametrize("shape", [(1, 33, 5, 7), (2, 16, 3, 40), (3, 64, 1, 16)], ids=str)
def test_a_copy_between_layouts_goes_through_tiles(types, shape, run, guarded, rng):
    values = rng.integers(-9, 10, shape) / 4
    for layouts in (("nchw", "nhwc"), ("nhwc", "nchw"), ("strided", "nchw")):
        x = guarded(shape, layouts[0], types[0], values)
        y = guarded(shape, layouts[1], types[1])
        short = layouts[0] == "strided" and shape[3] < 16  # its rows cannot be merged
        wanted = "pointwise_copy" if short else "pointwise_transpose"
        assert kernel_of([x], y, SIMPLE["pointwise_copy"]) == wanted
        run(lambda scratch, x=x, y=y: describe([x], y, SIMPLE["pointwise_copy"], scratch))
        np.testing.assert_array_equal(wide(y), wide(x))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_copy(axis, run, guarded, rng):
    x, y = guarded((20, 30), fill=rng.standard_normal((20, 30))), guarded((30, 20))
    flipped = np.flip(x.T, axis)  # axis 0: neighbours lie backwards, no tile reads them together
    kernel = kernel_of([flipped], y, SIMPLE["pointwise_copy"])
    assert kernel == ("pointwise_copy", "pointwise_transpose")[axis]
    run(lambda scratch: describe([flipped], y, SIMPLE["pointwise_copy"], scratch))
    np.testing.assert_array_equal(y, flipped)


@pytest.mark.parametrize("kernel", ["pointwise", "pointwise_leaky_grad"])
def test_numbers_beyond_31_bits_are_divided(kernel, run, guarded, rng):
    """Told so by hand: a tensor of that size has no place here."""
    shape = (3, 2, 5, 7)
    x = [guarded(shape, "strided", fill=rng.integers(-9, 10, shape)) for _ in range(2)]
    y = guarded(shape, "nchw")

    def make(scratch):
        work = describe(x, y, SIMPLE[kernel], scratch)
        work.launches[0].arguments.chunks.axes.wide = 1
        work.launches[0].arguments.chunks.axes.multiplier[:] = [0] * 6
        return work

    run(make)
    expected = reference.evaluate(SIMPLE[kernel], [wide(v) for v in x])
    assert_rounded(y, expected, np.abs(expected), 2)


def test_a_result_of_one_step_may_be_read_by_several(run, guarded):
    x, y = guarded((19,), fill=np.arange(-9, 10)), guarded((19,))
    steps = [
        ("mul", (X[0], X[0])),  # x^2
        ("add", (("t", 0), ("c", 1.0))),  # x^2 + 1
        ("sub", (("t", 1), ("t", 0))),  # 1
        ("neg", (("t", 1),)),  # nobody reads it
        ("mul", (("t", 0), ("t", 2))),  # x^2
        ("where", (X[0], ("t", 4), ("t", 1))),
    ]
    run(lambda scratch: describe([x], y, steps, scratch))
    np.testing.assert_array_equal(y, np.where(x != 0, x * x, x * x + 1))


def test_a_number_alone_fills_y(run, guarded):
    y = guarded((1, 3, 5, 7), "strided", "bf16")
    run(lambda scratch: describe([], y, [("copy", (("c", -1.5),))], scratch))
    np.testing.assert_array_equal(wide(y), -1.5)


def test_as_many_results_may_wait_as_24_steps_can_join(run, guarded, rng):
    """16 results, then 8 that join three each; and each of 8 inputs twice: all slots are taken."""
    x = [guarded((9,), fill=rng.integers(-9, 10, 9) / 4) for _ in range(8)]
    steps = [("add", (("x", i % 8), ("c", i / 4))) for i in range(16)]
    joined = [("t", i) for i in range(16)]
    while len(steps) < MAX_STEPS:
        # Those that were made first are joined last.
        *joined, a, b, c = joined if len(joined) > 2 else [*joined, ("c", 1.0)]
        steps.append(("where", (c, b, a)))
        joined.append(("t", len(steps) - 1))
    encoded = encode(steps)
    assert MAX_STEPS <= len(encoded.steps) <= 32
    assert 15 <= encoded.slots <= SLOTS
    y = guarded((9,))
    assert kernel_of(x, y, steps) == "pointwise_many_slots"
    run(lambda scratch: describe(x, y, steps, scratch))
    np.testing.assert_array_equal(y, reference.evaluate(steps, [wide(v) for v in x]))


def test_a_chain_needs_no_slot_and_a_repeated_input_is_read_once():
    chain = [("neg", (X[0],))] + [("neg", (("t", k),)) for k in range(MAX_STEPS - 1)]
    assert encode(chain).slots == 0
    repeated = encode([("sin", (X[0],)), ("cos", (X[0],)), ("add", (("t", 0), ("t", 1)))])
    sources = [step.code >> 16 & 255 for step in repeated.steps]
    assert len(repeated.steps) == 4
    assert sources.count(0) == 1


def test_bfloat16_is_rounded_to_even_and_keeps_what_is_not_a_number(run, guarded):
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32)
    x = guarded((5,), fill=bits.view(np.float32))
    y = guarded((5,), "nchw", "bf16")
    run(lambda scratch: describe([x], y, single("copy"), scratch))
    np.testing.assert_array_equal(y, [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80])


ARRAY = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("y", "steps", "text"),
    [
        (ARRAY[:1], [("neg", (X[0],))], r"x0 must have the shape of y, \(1, 3\), got \(2, 3\)"),
        (np.broadcast_to(ARRAY[:1], (2, 3)), [("neg", (X[0],))], "y must not repeat an element"),
        (ARRAY[:0], [("neg", (X[0],))], r"y must have elements, got shape \(0, 3\)"),
        (ARRAY, [], "1 to 24 steps, got 0"),
        (ARRAY, [("gelu", (X[0],))], "no function 'gelu' of 1 arguments; there are copy, neg"),
        (ARRAY, [("neg", (("x", 1),))], "step 0 reads x1, which is not there"),
    ],
)
def test_what_is_not_an_expression_is_refused(y, steps, text):
    with pytest.raises(ArrayError, match=text):
        describe([ARRAY], y, steps)


def test_nine_inputs_are_refused():
    with pytest.raises(ArrayError, match="up to 8 tensors, got 9"):
        describe([ARRAY] * 9, ARRAY, [("neg", (X[0],))])
