"""Copies and fills: every type into every other, in every layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.copy import copy, fill
from edgeadapt.kernels.cuda.tensors import TensorArgs
from support.strided import random_layout, to_bf16, wide

TYPES = ("f32", "f16", "bf16", "bool")
SHAPE = (1, 3, 11, 17)  # 561 elements: two blocks and some


def stored(values, dtype):
    """What an element of the type can hold of them."""
    if dtype == "bf16":
        return wide(to_bf16(values))
    kinds = {"f32": np.float32, "f16": np.float16, "bool": np.bool_}
    return values.astype(kinds[dtype]).astype(np.float64)


@pytest.mark.parametrize(("x_type", "y_type"), list(itertools.product(TYPES, TYPES)))
def test_a_copy_rounds_to_nearest_even(run, guarded, rng, x_type, y_type):
    values = (rng.standard_normal(SHAPE) * 4).astype(np.float32)
    values[0, 0, 0, :6] = [0.0, -0.0, np.inf, 1 + 2.0**-9, 1 + 3 * 2.0**-9, 2.0**-24]
    x = guarded(SHAPE, "strided", x_type, values)
    y = guarded(SHAPE, "nchw", y_type)
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y), scratch=scratch))
    expected = stored(stored(values, x_type).astype(np.float32), y_type)
    np.testing.assert_array_equal(wide(y), expected)


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_takes_any_strides(run, guarded, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 6, seed))
    values = rng.standard_normal(shape).astype(np.float32)
    x = guarded(shape, random_layout(rng, seed), "f32", values)
    y = guarded(shape, random_layout(rng, seed), "f32")
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y), scratch=scratch))
    np.testing.assert_array_equal(y, values)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "strided"])
def test_a_fill_writes_every_element(run, guarded, layout, dtype):
    y = guarded(SHAPE, layout, dtype)
    run(lambda scratch: fill(TensorArgs.of(y), -1.5, scratch=scratch))
    np.testing.assert_array_equal(wide(y), stored(np.full(SHAPE, -1.5), dtype))


def test_nan_stays_nan(run, guarded):
    x = guarded((5,), fill=np.nan)
    for dtype in ("f32", "f16", "bf16"):
        y = guarded((5,), "nchw", dtype, 0.0)
        run(lambda scratch, y=y: copy(TensorArgs.of(x), TensorArgs.of(y), scratch=scratch))
        assert np.isnan(wide(y)).all()


def test_there_is_nothing_to_do_for_nothing(run, guarded):
    x, y = guarded((3, 0)), guarded((3, 0))
    assert copy(TensorArgs.of(x), TensorArgs.of(y)).launches == ()


def test_another_shape_is_refused(guarded):
    x, y = guarded((3, 4)), guarded((4, 3))
    with pytest.raises(ArrayError, match=r"copy: y must be \(3, 4\) as x, got \(4, 3\)\."):
        copy(TensorArgs.of(x), TensorArgs.of(y))
