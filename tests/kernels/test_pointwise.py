"""Expressions of csrc/pointwise.cpp: each function alone, then chains of them in every layout."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.pointwise import FUNCTIONS, MAX_INPUTS, MAX_STEPS, pointwise
from edgeadapt.kernels.reference import pointwise as reference
from edgeadapt.kernels.tensors import TensorArgs
from edgeadapt.runtime.plan import kinds
from support.strided import NUMPY, Layout, fill, place, plain, random_layout, wide

# Half a unit in the last place for what the CPU rounds itself; more for what elementary.h and the C
# library approximate.
ULPS = {"exp": 1.1, "log": 1.1, "tanh": 1.6, "sigmoid": 2.5, "softplus": 2.5, "erf": 1.6}
ULPS |= {"sin": 1.0, "cos": 1.0, "pow": 1.0}
TINY = np.finfo(np.float32).tiny
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997]
SPECIAL += [
    3e38,
    -3e38,
    TINY,
    -TINY,
    TINY / 64,
    1e-30,
    88.8,
    -88.0,
    -103.0,
    8388609.0,
    2147483648.0,
]
MIXED = ["f32", "bf16", "bool"]


def single(function):
    return [(function, tuple(("x", i) for i in range(FUNCTIONS[function])))]


def run(call, inputs, y, expression, threads=1):
    call(
        "pointwise",
        pointwise([TensorArgs.of(x) for x in inputs], TensorArgs.of(y), expression),
        threads,
    )


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


def test_the_plan_and_the_kernel_name_the_same_functions():
    assert list(FUNCTIONS.items()) == list(kinds.FUNCTIONS.items())
    assert (MAX_INPUTS, MAX_STEPS) == (kinds.MAX_INPUTS, kinds.MAX_STEPS)
    assert FUNCTIONS.keys() == reference.FUNCTIONS.keys()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_alone_equals_the_reference(function, call, guards):
    rng = np.random.default_rng(list(FUNCTIONS).index(function))
    count = FUNCTIONS[function]
    corners = np.meshgrid(*[SPECIAL] * count)
    scale = rng.choice([1e-3, 1, 1, 30], (count, 1021))  # one more than whole vectors
    values = [
        np.concatenate([corner.ravel(), row])
        for corner, row in zip(corners, rng.standard_normal((count, 1021)) * scale, strict=True)
    ]
    inputs = [guards.copy(value.astype(np.float32)) for value in values]
    y = guards.empty(inputs[0].shape)
    run(call, inputs, y, single(function))
    expected = reference.evaluate(single(function), [wide(x) for x in inputs])
    assert_within(y, expected, ULPS.get(function, 0.5000001))


def test_a_result_of_one_step_may_be_read_by_several(call, guards):
    x = guards.copy(np.arange(-9, 10, dtype=np.float32))
    y = guards.empty(x.shape)
    steps = [
        ("mul", (("x", 0), ("x", 0))),  # x^2
        ("add", (("t", 0), ("c", 1.0))),  # x^2 + 1
        ("sub", (("t", 1), ("t", 0))),  # 1
        ("mul", (("t", 0), ("t", 2))),  # x^2
        ("where", (("x", 0), ("t", 3), ("t", 1))),
    ]
    run(call, [x], y, steps)
    np.testing.assert_array_equal(y, np.where(x != 0, x * x, x * x + 1))


def test_a_step_without_a_use_does_no_harm(call, guards):
    x = guards.copy(np.arange(40, dtype=np.float32))
    y = guards.empty(x.shape)
    unused = ("neg", (("x", 0),))
    run(
        call,
        [x],
        y,
        [("add", (("x", 0), ("c", 1.0))), unused, unused, ("mul", (("t", 0), ("c", 2.0)))],
    )
    np.testing.assert_array_equal(y, (x + 1) * 2)


# Functions whose results on quarters of whole numbers are exact in float32.
EXACT = ["copy", "neg", "abs", "sign", "floor", "round", "not", "add", "sub", "max", "min", "gt"]
EXACT += ["ge", "lt", "le", "eq", "ne", "and", "or", "where"]
SHAPES = st.lists(st.sampled_from([1, 1, 2, 3, 5, 7, 17, 33, 160]), max_size=6).filter(
    lambda shape: prod(shape) <= 6000
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


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), shape=SHAPES, inputs=st.integers(0, 8), seed=st.integers(0, 2**31))
def test_chains_in_any_layout_equal_the_reference(call, guards, data, shape, inputs, seed):
    rng = np.random.default_rng(seed)
    expression = data.draw(expressions(inputs))
    views = [random_input(guards, tuple(shape), rng) for _ in range(inputs)]
    dtype = str(rng.choice(MIXED))
    placed = place(guards, tuple(shape), dtype, random_layout(rng, len(shape)))
    run(call, views, placed.view, expression, threads=int(rng.integers(1, 3)))
    expected = np.broadcast_to(reference.evaluate(expression, [wide(v) for v in views]), shape)
    wanted = np.empty(shape, placed.view.dtype)
    fill(wanted, expected)
    np.testing.assert_array_equal(placed.view, wanted)
    assert placed.surroundings_are_untouched()
    guards.close()


def random_input(guards, shape, rng):
    """Quarters of small numbers of any type in any layout, repeated along some axes."""
    repeated = rng.random(len(shape)) < 0.2
    real = tuple(1 if once else n for n, once in zip(shape, repeated, strict=True))
    view = place(guards, real, str(rng.choice(MIXED)), random_layout(rng, len(shape))).view
    fill(view, rng.integers(-9, 10, real) / 4)
    return np.broadcast_to(view, shape)


@pytest.mark.parametrize("dtype", MIXED)
@pytest.mark.parametrize(
    "small", [(4, 1, 1), (1, 5, 1), (1, 1, 301), (4, 1, 301), (1, 1, 1)], ids=str
)
def test_long_rows_of_what_repeats(small, dtype, call, guards):
    rng = np.random.default_rng(14)
    x, b = guards.copy(rng.random((4, 5, 301), np.float32)), guards.empty(small, NUMPY[dtype])
    fill(b, rng.standard_normal(small))
    y = guards.empty(x.shape)
    run(call, [x, np.broadcast_to(b, x.shape)], y, single("add"))
    np.testing.assert_array_equal(y, (wide(x) + wide(b)).astype(np.float32))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("function", ["copy", "add", "leaky", "leaky_grad", "mul"])
@pytest.mark.parametrize("shape", [(3, 40, 100), (5, 9, 7)], ids=["whole", "odd"])
def test_in_place(function, dtype, shape, call, guards):
    rng = np.random.default_rng(1)
    layout = Layout((0, 1, 2), (1, 1, 1), (0, 2, 0))  # rows of neighbours, planes with gaps
    expression = [(function, (("x", 0), ("x", 1), ("c", 0.25))[: FUNCTIONS[function]])]
    views = [place(guards, shape, dtype, layout).view for _ in range(2)]
    for view in views:
        fill(view, rng.standard_normal(shape))
    expected = reference.evaluate(expression, [wide(view) for view in views])
    wanted = np.empty(shape, views[0].dtype)
    fill(wanted, expected.astype(np.float32))
    run(call, views, views[0], expression, threads=2)
    np.testing.assert_array_equal(views[0], wanted)


def test_bfloat16_is_rounded_to_even_and_keeps_what_is_not_a_number(call, guards):
    bits = np.array(
        [0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001], np.uint32
    )
    x = guards.copy(np.resize(bits, 41).view(np.float32))
    y = guards.empty(x.shape, np.uint16)
    run(call, [x], y, single("copy"))
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FC0]
    np.testing.assert_array_equal(y, np.resize(np.array(expected, np.uint16), 41))


def test_the_number_of_threads_changes_no_bit(call, guards):
    rng = np.random.default_rng(2)
    x = guards.copy(rng.standard_normal((7, 50, 150)).astype(np.float32))
    steps = [("tanh", (("x", 0),)), ("softplus", (("t", 0),)), ("mul", (("t", 1), ("x", 0)))]
    results = []
    for threads in (1, 2, 3):
        y = guards.empty(x.shape)
        run(call, [x], y, steps, threads)
        results.append(y)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_allclose(results[0], reference.evaluate(steps, [wide(x)]), rtol=1e-6)


ARRAY = np.zeros((2, 3), np.float32)
X = ("x", 0)


@pytest.mark.parametrize(
    ("y", "steps", "text"),
    [
        (ARRAY[:1], [("neg", (X,))], r"x0 must have the shape of y, \(1, 3\), got \(2, 3\)"),
        (np.broadcast_to(ARRAY[:1], (2, 3)), [("neg", (X,))], "y must not repeat an element"),
        (ARRAY[:0], [("neg", (X,))], r"y must have elements, got shape \(0, 3\)"),
        (ARRAY, [], "1 to 24 steps, got 0"),
        (ARRAY, [("neg", (X,))] * 25, "1 to 24 steps, got 25"),
        (ARRAY, [("gelu", (X,))], "no function 'gelu' of 1 arguments; there are copy, neg"),
        (ARRAY, [("add", (X,))], "no function 'add' of 1 arguments"),
        (ARRAY, [("neg", (("x", 1),))], "step 0 reads x1, which is not there"),
        (ARRAY, [("neg", (("t", 0),))], "step 0 reads t0, which is not there"),
    ],
)
def test_what_is_not_an_expression_is_refused(y, steps, text):
    with pytest.raises(ArrayError, match=text):
        pointwise([TensorArgs.of(ARRAY)], TensorArgs.of(y), steps)


def test_nine_inputs_are_refused():
    with pytest.raises(ArrayError, match="up to 8 tensors, got 9"):
        pointwise([TensorArgs.of(ARRAY)] * 9, TensorArgs.of(ARRAY), [("neg", (X,))])


def test_a_whole_expression_needs_few_buffers():
    chain = [("neg", (X,))] + [("neg", (("t", k),)) for k in range(MAX_STEPS - 1)]
    arguments = pointwise([TensorArgs.of(ARRAY)], TensorArgs.of(ARRAY), chain)
    assert {arguments.step[k].slot for k in range(MAX_STEPS)} == {0}


def test_layouts_are_what_they_say(guards):
    placed = place(guards, (2, 3), "f32", Layout((1, 0), (1, -2), (1, 0)))
    fill(placed.view, np.arange(6).reshape(2, 3))
    expected = np.full((6, 3), np.nan)
    expected[[4, 2, 0], :2] = [[0, 3], [1, 4], [2, 5]]
    np.testing.assert_array_equal(placed.memory, expected)
    assert placed.surroundings_are_untouched()
    assert plain(2) == Layout((0, 1), (1, 1), (0, 0))
