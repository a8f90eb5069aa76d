"""The loss of csrc/l1_loss.cu and its gradient."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.l1_loss import l1_loss
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.kernels.reference import l1_loss as reference
from support.strided import fill, wide

# One pixel, odd, rows of whole chunks, several blocks.
SIZES = [(1, 1, 1), (3, 5, 7), (4, 6, 8), (3, 41, 53), (8, 33, 40)]
LAYOUTS = ["nhwc nhwc nhwc", "nchw nchw nchw", "strided strided strided", "strided nchw nhwc"]
KINDS = {"f": "f32", "h": "f16", "b": "bf16"}
# Sixteen differences and their sums in a thread, a tree of 256 threads; the blocks in float64.
RELATIVE = (1 + 3 + 2 + 8 + 1) * 2.0**-24


def describe(a, b, value, grad=None, scratch=0, **scales):
    images = [ImageArgs.of(image) for image in (a, b)]
    other = None if grad is None else ImageArgs.of(grad)
    return l1_loss(*images, TensorArgs.of(value), other, scratch=scratch, **scales)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("types", ["fff", "hff", "fhh", "bfb", "bbf", "ff-", "hh-"])
def test_value_and_gradient_equal_the_reference(size, layouts, types, run, guarded, rng):
    shape, first, second, third = (1, *size), *layouts.split()
    a = guarded(shape, first, KINDS[types[0]], rng.standard_normal(shape))
    b = guarded(shape, second, KINDS[types[1]], rng.standard_normal(shape))
    equal = rng.random(shape) < 0.2
    fill(b, np.where(equal, wide(a), wide(b)))
    fill(a, np.where(equal, wide(b), wide(a)))  # rounded as b was
    grad = None if types[2] == "-" else guarded(shape, third, KINDS[types[2]])
    value = guarded((1,))
    scales = {"value_scale": 0.3, "grad_scale": -0.7}
    run(lambda scratch: describe(a, b, value, grad, scratch, **scales))
    exact = reference.value(wide(a), wide(b), 0.3)
    assert abs(value[0] - exact) <= RELATIVE * exact
    if grad is not None:
        wanted = np.empty(shape, grad.dtype)
        fill(wanted, reference.gradient(wide(a), wide(b), float(np.float32(-0.7))))
        np.testing.assert_array_equal(wide(grad), wide(wanted))


@pytest.mark.parametrize("over", ["a", "b"])
@pytest.mark.parametrize("width", [33, 512])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_the_gradient_may_take_the_place_of_an_image(over, width, dtype, run, guarded, rng):
    shape = (1, 3, 9, width)
    a, b = (guarded(shape, "nhwc", dtype, rng.standard_normal(shape)) for _ in "ab")
    exact = reference.value(wide(a), wide(b), 1.0)
    expected = reference.gradient(wide(a), wide(b), 1.0)
    value, grad = guarded(()), {"a": a, "b": b}[over]
    run(lambda scratch: describe(a, b, value, grad, scratch))
    np.testing.assert_allclose(value, exact, rtol=RELATIVE)
    np.testing.assert_array_equal(grad, expected)


def test_a_sum_of_a_million_is_as_accurate_as_its_parts(run, guarded, rng):
    shape = (1, 3, 360, 1024)
    a, b, value = guarded(shape, fill=rng.random(shape)), guarded(shape, fill=0.5), guarded((1,))
    run(lambda scratch: describe(a, b, value, None, scratch, value_scale=1 / a.size))
    exact = reference.value(wide(a), wide(b), 1 / a.size)
    assert abs(value[0] - exact) <= 1.5e-7 * exact


@pytest.mark.parametrize("width", [35, 64])
def test_what_is_not_a_number_is_passed_on(width, run, guarded):
    shape = (1, 1, 2, width)
    a, b = guarded(shape, fill=1.0), guarded(shape, fill=1.0)
    a[0, 0, 1, width - 1] = np.nan
    value, grad = guarded((1,)), guarded(shape)
    run(lambda scratch: describe(a, b, value, grad, scratch))
    assert np.isnan(value[0])
    np.testing.assert_array_equal(grad, np.where(np.isnan(a), np.nan, 0.0))


GOOD = np.zeros((1, 2, 3, 4), np.float32)
ONE = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("b", "value", "grad", "text"),
    [
        (GOOD[:, :1], ONE, GOOD, r"b must be the size of a, \(1, C, H, W\), got \(1, 1, 3, 4\)"),
        (GOOD, ONE, GOOD[:, :, :2], r"grad must be the size of a.* got \(1, 2, 2, 4\)"),
        (GOOD, ONE, GOOD > 0, "grad must be float32, float16 or bfloat16, got bool"),
        (GOOD, GOOD[0, 0, 0], GOOD, r"value must be one float32, got type 0 and shape \(4,\)"),
        (GOOD, ONE > 0, GOOD, r"value must be one float32, got type 2"),
    ],
)
def test_what_does_not_fit_is_refused(b, value, grad, text):
    with pytest.raises(ArrayError, match=text):
        describe(GOOD, b, value, grad)
