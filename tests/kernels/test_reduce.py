"""Reductions of csrc/reduce.cpp over any axes of any layout."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.reduce import AFTER, BEFORE, HOW, reduce
from edgeadapt.kernels.reference import reduce as reference
from edgeadapt.kernels.tensors import TensorArgs
from support.strided import fill, place, random_layout, wide

EPS = 2.0**-23
SHAPES = st.lists(st.sampled_from([1, 2, 3, 5, 17, 40, 600]), max_size=6).filter(
    lambda shape: prod(shape) <= 12000
)


def run(call, x, y, how, axes, threads=1, **others):
    call("reduce", reduce(TensorArgs.of(x), TensorArgs.of(y), how, axes, **others), threads)


def kept_shape(shape, axes):
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape))


def assert_reduced(y, x, how, axes, **others):
    """Within two roundings of the largest sum that the reduced elements could have."""
    exact = reference.reduce(wide(x), how, axes, **others)
    unsigned = {**others, "before": others.get("before") or "abs"}
    bound = np.abs(reference.reduce(wide(x), how, axes, **{**unsigned, "after": None}))
    if others.get("after") == "sqrt":
        bound = exact
    half = 2.0**-8 if y.dtype == np.uint16 else 0.0
    count = max(prod(x.shape) // max(y.size, 1), 1)
    tolerance = bound * EPS * (count if how == "prod" else 2) + np.abs(exact) * half
    error = np.abs(wide(y) - exact)
    assert (error <= tolerance + 1e-38).all(), f"{(error / (tolerance + 1e-38)).max()}"


@pytest.mark.parametrize(
    ("how", "before", "after"), [*itertools.product(HOW, BEFORE, AFTER)], ids=str
)
@pytest.mark.parametrize("axes", [(1, 2), (0,), (0, 2), ()], ids=str)
def test_every_kind_equals_the_reference(how, before, after, axes, call, guards):
    rng = np.random.default_rng(3)
    x = guards.copy(rng.uniform(0.5, 1.5, (37, 5, 9)).astype(np.float32))
    if after is None:
        x *= rng.choice([-1, 1], x.shape)
    y = guards.empty(kept_shape(x.shape, axes))
    run(call, x, y, how, axes, before=before, after=after, scale=0.37)
    assert_reduced(y, x, how, axes, before=before, after=after, scale=0.37)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), shape=SHAPES, how=st.sampled_from(["sum", "max", "min"]))
def test_any_axes_of_any_layout_equal_the_reference(call, guards, data, shape, how):
    axes = tuple(axis for axis in range(len(shape)) if data.draw(st.booleans()))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    real = tuple(1 if rng.random() < 0.1 else n for n in shape)
    source = place(guards, real, str(rng.choice(["f32", "bf16"])), random_layout(rng, len(shape)))
    fill(source.view, rng.standard_normal(real))
    x = np.broadcast_to(source.view, tuple(shape))
    result = kept_shape(shape, axes)
    y = place(guards, result, str(rng.choice(["f32", "bf16"])), random_layout(rng, len(shape)))
    run(call, x, y.view, how, axes, threads=int(rng.integers(1, 3)), scale=0.5)
    assert_reduced(y.view, x, how, axes, scale=0.5)
    assert y.surroundings_are_untouched()
    guards.close()


def test_a_sum_of_millions_is_as_accurate_as_its_parts(call, guards):
    rng = np.random.default_rng(4)
    x = guards.copy(rng.random((3, 900, 1000), np.float32))
    results = []
    for threads in (1, 2):
        y = guards.empty((1, 1, 1))
        run(call, x, y, "sum", (0, 1, 2), threads)
        results.append(y.item())
    exact = wide(x).sum()
    assert abs(results[0] - exact) <= 1e-7 * exact
    assert results[0] == results[1]


def test_sums_across_rows_are_as_accurate(call, guards):
    rng = np.random.default_rng(5)
    x = guards.copy(rng.random((20000, 40), np.float32))
    y = guards.empty((1, 40))
    run(call, x, y, "sum", (0,), 2)
    np.testing.assert_allclose(y, wide(x).sum(0, keepdims=True), rtol=2e-7)


@pytest.mark.parametrize("shape", [(3, 41, 53), (100, 7)], ids=str)
@pytest.mark.parametrize("axis", [0, -1])
def test_the_number_of_threads_changes_no_bit(shape, axis, call, guards):
    x = guards.copy(np.random.default_rng(6).standard_normal(shape).astype(np.float32))
    axes = (axis % len(shape),)
    results = [guards.empty(kept_shape(shape, axes)) for _ in range(3)]
    for threads, y in enumerate(results, 1):
        run(call, x, y, "sum", axes, threads)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("how", ["max", "min"])
@pytest.mark.parametrize("position", [0, 77, 299])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_not_a_number_is_the_extreme_of_all(how, position, axis, call, guards):
    x = guards.copy(np.random.default_rng(7).standard_normal((300, 300)).astype(np.float32))
    x[position, position] = np.nan
    y = guards.empty(kept_shape(x.shape, (axis,)))
    run(call, x, y, how, (axis,))
    np.testing.assert_array_equal(y, reference.reduce(wide(x), how, (axis,)))


def test_bool_is_counted(call, guards):
    x = guards.copy(np.random.default_rng(8).random((30, 50)) < 0.3)
    y = guards.empty((30, 1))
    run(call, x, y, "sum", (1,))
    np.testing.assert_array_equal(y, x.sum(1, keepdims=True))


ARRAY = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "how", "axes", "others", "text"),
    [
        (
            ARRAY,
            "mean",
            (1,),
            {},
            r"how must be one of \['sum', 'max', 'min', 'prod'\], got 'mean'",
        ),
        (ARRAY, "sum", (1,), {"before": "log"}, "before must be one of .* got 'log'"),
        (ARRAY, "sum", (1,), {"after": "exp"}, "after must be one of .* got 'exp'"),
        (ARRAY, "sum", (2,), {}, r"axes must be of 2, got \(2,\)"),
        (ARRAY, "sum", (0,), {}, r"y must be \(1, 3\), got \(2, 1\)"),
        (ARRAY[:, :0], "sum", (1,), {}, r"x must have elements, got shape \(2, 0\)"),
    ],
)
def test_what_does_not_fit_is_refused(x, how, axes, others, text):
    with pytest.raises(ArrayError, match=text):
        reduce(TensorArgs.of(x), TensorArgs.of(ARRAY[:, :1]), how, axes, **others)
