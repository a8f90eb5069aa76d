"""The loss of csrc/l1_loss.cpp and its gradient."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.l1_loss import l1_loss
from edgeadapt.kernels.reference import l1_loss as reference
from edgeadapt.kernels.tensors import PlaneArgs, TensorArgs
from edgeadapt.testing import central_difference
from support.strided import Layout, fill, place, to_bf16, wide

# One pixel, odd, more than a block and a task, rows of whole vectors.
SIZES = [(1, 1, 1), (3, 5, 7), (3, 150, 333), (2, 40, 512)]
# Images one behind the other, gaps behind rows, gaps behind planes only.
MARGINS = [(0, 0, 0, 0), (0, 0, 0, 3), (0, 1, 2, 0)]


def image(guards, size, dtype="f32", margins=(0, 0, 0, 0), offset=0):
    return place(guards, (1, *size), dtype, Layout((0, 1, 2, 3), (1,) * 4, margins, offset))


def run(call, a, b, value, grad=None, threads=1, **scales):
    planes = [None if x is None else PlaneArgs.of(x) for x in (a, b, grad)]
    arguments = l1_loss(*planes[:2], TensorArgs.of(value), planes[2], **scales)
    call("l1_loss", arguments, threads)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("margins", MARGINS, ids=str)
@pytest.mark.parametrize("dtypes", ["fff", "hff", "fhh", "hhf", "ff-", "hh-"])
def test_value_and_gradient_equal_the_reference(size, margins, dtypes, call, guards):
    rng = np.random.default_rng(sum(size))
    kinds = {"f": "f32", "h": "bf16"}
    a, b = (image(guards, size, kinds[d], margins, offset=1).view for d in dtypes[:2])
    fill(a, rng.standard_normal(a.shape))
    fill(b, rng.standard_normal(b.shape))
    equal = rng.random(a.shape) < 0.2
    fill(b, np.where(equal, wide(a), wide(b)))
    fill(a, np.where(equal, wide(b), wide(a)))  # rounded as b was
    grad = None if dtypes[2] == "-" else image(guards, size, kinds[dtypes[2]], margins)
    value = guards.empty((1,))
    scales = {"value_scale": 0.3, "grad_scale": -0.7}
    run(call, a, b, value, None if grad is None else grad.view, threads=2, **scales)
    exact = reference.value(wide(a), wide(b), 0.3)
    assert abs(value[0] - exact) <= 1.5e-7 * exact
    if grad is not None:
        expected = reference.gradient(wide(a), wide(b), float(np.float32(-0.7)))
        if grad.view.dtype == np.uint16:
            expected = wide(to_bf16(expected))
        np.testing.assert_array_equal(wide(grad.view), expected)
        assert grad.surroundings_are_untouched()


def test_the_reference_gradient_is_the_derivative_of_the_reference():
    rng = np.random.default_rng(11)
    a, b = rng.standard_normal((2, 1, 2, 3, 4))
    expected = central_difference(
        lambda x: np.array([reference.value(x, b, 0.4)]), a, np.array([2.0])
    )
    np.testing.assert_allclose(reference.gradient(a, b, 0.8), expected, rtol=1e-6)


@pytest.mark.parametrize("over", ["a", "b"])
@pytest.mark.parametrize("width", [33, 512])
def test_the_gradient_may_take_the_place_of_an_image(over, width, call, guards):
    rng = np.random.default_rng(12)
    a, b = (guards.copy(rng.standard_normal((1, 3, 9, width)).astype(np.float32)) for _ in "ab")
    exact, expected = (
        reference.value(wide(a), wide(b), 1.0),
        reference.gradient(wide(a), wide(b), 1.0),
    )
    value = guards.empty(())
    grad = {"a": a, "b": b}[over]
    run(call, a, b, value, grad)
    np.testing.assert_allclose(value, exact, rtol=1.5e-7)
    np.testing.assert_array_equal(grad, expected)


def test_the_number_of_threads_changes_no_bit(call, guards):
    rng = np.random.default_rng(13)
    a, b = (guards.copy(rng.random((1, 3, 300, 301), np.float32)) for _ in "ab")
    values = guards.empty((3,))
    for threads in (1, 2, 3):
        run(call, a, b, values[threads - 1 : threads], threads=threads)
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("width", [35, 64])
def test_what_is_not_a_number_is_passed_on(width, call, guards):
    a, b = (guards.copy(np.ones((1, 1, 2, width), np.float32)) for _ in "ab")
    a[0, 0, 1, width - 1] = np.nan
    value, grad = guards.empty((1,)), guards.empty(a.shape)
    run(call, a, b, value, grad)
    assert np.isnan(value[0])
    np.testing.assert_array_equal(grad, np.where(np.isnan(a), np.nan, 0.0))


GOOD = np.zeros((1, 2, 3, 4), np.float32)
ONE = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("b", "value", "grad", "text"),
    [
        (GOOD[:, :1], ONE, GOOD, r"b must be the size of a, \(1, C, H, W\), got \(1, 1, 3, 4\)"),
        (GOOD, ONE, GOOD[:, :, :2], r"grad must be the size of a.* got \(1, 2, 2, 4\)"),
        (GOOD, ONE, GOOD > 0, "grad must be float32 or bfloat16, got bool"),
        (GOOD, GOOD[0, 0, 0], GOOD, r"value must be one float32, got type 0 and shape \(4,\)"),
        (GOOD, ONE > 0, GOOD, r"value must be one float32, got type 2"),
    ],
)
def test_what_does_not_fit_is_refused(b, value, grad, text):
    with pytest.raises(ArrayError, match=text):
        l1_loss(PlaneArgs.of(GOOD), PlaneArgs.of(b), TensorArgs.of(value), PlaneArgs.of(grad))
