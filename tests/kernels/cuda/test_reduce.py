"""Reductions of csrc/reduce.cu over any axes of any layout."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.reduce import reduce
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.reduce import AFTER, BEFORE, HOW
from edgeadapt.kernels.reference import reduce as reference
from support.strided import random_layout, wide

TYPES = ["f32", "f16", "bf16"]
OWN = {"float32": 2.0**-24, "float16": 2.0**-11, "uint16": 2.0**-8}  # rounding of the result
# 64 elements of a thread in four sums, the four of them, a tree of up to 256, and what `before` and
# the part's own float32 round.
ROUNDINGS = 16 + 2 + 8 + 2
SHAPES = st.lists(st.sampled_from([1, 2, 3, 5, 17, 40, 600]), max_size=6).filter(
    lambda shape: prod(shape) <= 6000
)


def describe(x, y, how, axes, scratch=0, **others):
    return reduce(TensorArgs.of(x), TensorArgs.of(y), how, axes, scratch=scratch, **others)


def kept_shape(shape, axes):
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape))


def assert_reduced(y, x, how, axes, **others):
    """Within the roundings of the largest sum that the reduced elements could have."""
    exact = reference.reduce(wide(x), how, axes, **others)
    unsigned = {**others, "before": others.get("before") or "abs"}
    bound = np.abs(reference.reduce(wide(x), how, axes, **{**unsigned, "after": None}))
    if others.get("after") == "sqrt":
        bound = exact
    count = max(prod(x.shape) // max(y.size, 1), 1)
    roundings = {"prod": count, "sum": ROUNDINGS}.get(how, 0) + 2
    allowed = bound * 2.0**-24 * roundings + np.abs(exact) * OWN[y.dtype.name] + 2.0**-25
    error = np.abs(wide(y) - exact)
    assert (error <= allowed).all(), f"{(error / allowed).max()}"


@pytest.mark.parametrize(
    ("how", "before", "after"), [*itertools.product(HOW, BEFORE, AFTER)], ids=str
)
@pytest.mark.parametrize("axes", [(1, 2), (0,), (0, 2), ()], ids=str)
def test_every_kind_equals_the_reference(how, before, after, axes, run, guarded, rng):
    values = rng.uniform(0.5, 1.5, (37, 5, 9))
    if after is None:
        values *= rng.choice([-1, 1], values.shape)
    x, y = guarded(values.shape, fill=values), guarded(kept_shape(values.shape, axes))
    others = {"before": before, "after": after, "scale": 0.37}
    run(lambda scratch: describe(x, y, how, axes, scratch, **others))
    assert_reduced(y, x, how, axes, **others)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), shape=SHAPES, how=st.sampled_from(["sum", "max", "min"]))
def test_any_axes_of_any_layout_equal_the_reference(device, data, shape, how):
    axes = tuple(axis for axis in range(len(shape)) if data.draw(st.booleans()))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    real = tuple(1 if rng.random() < 0.1 else n for n in shape)
    layouts = [random_layout(rng, len(shape)) for _ in "xy"]
    source = device.array(real, layouts[0], str(rng.choice(TYPES)), rng.standard_normal(real))
    x = np.broadcast_to(source, tuple(shape))
    y = device.array(kept_shape(shape, axes), layouts[1], str(rng.choice(TYPES)))
    device.run(lambda scratch: describe(x, y, how, axes, scratch, scale=0.5))
    assert_reduced(y, x, how, axes, scale=0.5)
    device.guards.close()
    device._placed.clear()


# One part and several, alone and side by side; more than a warp of results, and an odd one.
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "strided"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1, 3, 150, 151), (0, 1, 2, 3)),
        ((1, 3, 80, 81), (2, 3)),
        ((1, 35, 40, 41), (2, 3)),
        ((1, 3, 20, 21), (1,)),
        ((1, 300, 4, 5), (1,)),
    ],
    ids=str,
)
def test_images_in_every_layout(shape, axes, layout, run, guarded, rng):
    values = rng.standard_normal(shape)
    for how, dtype in (("sum", "f32"), ("sum", "f16"), ("max", "bf16")):
        x, y = guarded(shape, layout, dtype, values), guarded(kept_shape(shape, axes), layout)
        run(lambda scratch, x=x, y=y, how=how: describe(x, y, how, axes, scratch, scale=0.3))
        assert_reduced(y, x, how, axes, scale=0.3)


def test_a_mean_of_a_million_is_as_accurate_as_its_parts(run, guarded, rng):
    x, y = guarded((1, 1, 720, 1280), fill=rng.random((720, 1280))), guarded((1, 1, 1, 1))
    axes = (0, 1, 2, 3)
    run(lambda scratch: describe(x, y, "sum", axes, scratch, scale=1 / x.size))
    assert abs(y.item() - wide(x).mean()) <= 1e-7 * wide(x).mean()


def test_sums_across_rows_are_as_accurate(run, guarded, rng):
    x, y = guarded((20000, 20), fill=rng.random((20000, 20))), guarded((1, 20))
    run(lambda scratch: describe(x, y, "sum", (0,), scratch))
    np.testing.assert_allclose(y, wide(x).sum(0, keepdims=True), rtol=2e-7)


def test_which_parts_there_are_depends_on_sizes_alone(guarded):
    x, y = guarded((1, 8, 100, 101)), guarded((1, 8, 1, 1))
    first, then = describe(x, y, "sum", (2, 3)).launches
    arguments = first.arguments
    assert (arguments.lanes, arguments.across) == (32, 1)  # 8 results side by side
    assert arguments.parts == -(-10100 // (32 * 64))
    assert (first.kernel, then.kernel) == ("reduce", "reduce_parts")


@pytest.mark.parametrize("how", ["max", "min"])
@pytest.mark.parametrize("position", [0, 77, 298])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_not_a_number_is_the_extreme_of_all(how, position, axis, run, guarded, rng):
    values = rng.standard_normal((299, 33))
    values[position, position % 33] = np.nan
    x, y = guarded(values.shape, fill=values), guarded(kept_shape(values.shape, (axis,)))
    run(lambda scratch: describe(x, y, how, (axis,), scratch))
    np.testing.assert_array_equal(y, reference.reduce(wide(x), how, (axis,)))


@pytest.mark.parametrize(("how", "expected"), [("max", -2.0), ("min", 2.0), ("prod", 2.0)])
def test_lanes_without_an_element_change_nothing(how, expected, run, guarded):
    x, y = guarded((257,), fill=1.0 if how == "prod" else expected), guarded((1,))
    x[-1] = expected
    run(lambda scratch: describe(x, y, how, (0,), scratch))
    assert y.item() == expected


def test_bool_is_counted(run, guarded, rng):
    values = rng.random((30, 50)) < 0.3
    x, y = guarded(values.shape, "nchw", "bool", values), guarded((30, 1))
    run(lambda scratch: describe(x, y, "sum", (1,), scratch))
    np.testing.assert_array_equal(y, values.sum(1, keepdims=True))


ARRAY = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "how", "axes", "others", "text"),
    [
        (ARRAY, "mean", (1,), {}, r"how must be one of \['sum', .*'prod'\], got 'mean'"),
        (ARRAY, "sum", (1,), {"before": "log"}, "before must be one of .* got 'log'"),
        (ARRAY, "sum", (1,), {"after": "exp"}, "after must be one of .* got 'exp'"),
        (ARRAY, "sum", (2,), {}, r"axes must be of 2, got \(2,\)"),
        (ARRAY, "sum", (0,), {}, r"y must be \(1, 3\), got \(2, 1\)"),
        (ARRAY[:, :0], "sum", (1,), {}, r"x must have elements, got shape \(2, 0\)"),
    ],
)
def test_what_does_not_fit_is_refused(x, how, axes, others, text):
    with pytest.raises(ArrayError, match=text):
        describe(x, ARRAY[:, :1], how, axes, **others)
