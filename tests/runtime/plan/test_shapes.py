"""Arithmetic on strides is what numpy does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.runtime.plan import shapes
from edgeadapt.runtime.plan.ir import Tensor, View, contiguous

LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def strided(array: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides in elements."""
    return array.shape, tuple(stride // array.itemsize for stride in array.strides)


@st.composite
def views(draw: st.DrawFn, repeated: bool = True) -> np.ndarray:
    """An array sliced, turned and ``repeated``."""
    array = np.arange(4096)[: np.prod(shape := draw(LENGTHS))].reshape(shape)
    array = array[tuple(slice(None, None, draw(st.sampled_from((1, 2, -1)))) for _ in shape)]
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if not repeated:
        return array
    wanted = tuple(draw(st.sampled_from((1, 3))) if n == 1 else n for n in array.shape)
    return np.broadcast_to(array, (*((2,) if draw(st.booleans()) else ()), *wanted))


@given(views(), st.data())
def test_a_reshape_is_a_view_when_it_is_one_in_numpy(array: np.ndarray, data: st.DataObject):
    left, wanted = array.size, []
    while left > 1:
        wanted.append(data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
        left //= wanted[-1]
    wanted.insert(data.draw(st.integers(0, len(wanted))), 1)
    found = shapes.reshaped(*strided(array), tuple(wanted))
    expected = array.reshape(wanted)
    if found is None:
        assert not np.shares_memory(expected, array)
    else:
        size = array.itemsize
        view = np.lib.stride_tricks.as_strided(array, wanted, [size * s for s in found])
        np.testing.assert_array_equal(view, expected)


@given(views(repeated=False), st.integers(1, 3))
def test_expanding_repeats(array: np.ndarray, more: int):
    wanted = (more, *(more if n == 1 else n for n in array.shape))
    shape, strides = strided(array)
    expected = np.broadcast_to(array, wanted)
    found = shapes.expanded(shape, strides, wanted)
    result = np.lib.stride_tricks.as_strided(array, wanted, [array.itemsize * s for s in found])
    np.testing.assert_array_equal(result, expected)


@given(st.lists(LENGTHS, min_size=1, max_size=3))
def test_broadcasting_is_numpy_s(all_shapes: list[tuple[int, ...]]):
    try:
        expected = np.broadcast_shapes(*all_shapes)
    except ValueError:
        with pytest.raises(ValueError, match="do not broadcast"):
            shapes.broadcast(*all_shapes)
    else:
        assert shapes.broadcast(*all_shapes) == expected


STEPS = st.sampled_from((-3, -2, -1, 1, 2, 3))


@given(st.integers(1, 9), st.integers(-12, 12), st.integers(-12, 12), STEPS)
def test_slices_clamp_as_onnx_says(length: int, start: int, end: int, step: int):
    def clamped(value: int, least: int, most: int) -> int:
        return min(max(value + length if value < 0 else value, least), most)

    # The operator's text: negative steps go down to -1, the place before the first.
    first = clamped(start, 0, length - (step < 0))
    last = clamped(end, 0 if step > 0 else -1, length if step > 0 else length - 1)
    expected = list(range(first, last, step))
    begin, count = shapes.sliced(length, start, end, step)
    assert [begin + step * i for i in range(count)] == expected


@given(views())
def test_the_reach_of_a_view_is_that_of_its_elements(array: np.ndarray):
    offsets = [int(np.dot(index, strided(array)[1])) for index in np.ndindex(array.shape)]
    assert shapes.reach(0, *strided(array)) == (min(offsets), max(offsets))


def test_contiguity_does_not_look_at_axes_of_length_one():
    view = Tensor("v", (1, 3, 1, 5), view=View("x", 2, (7, 5, 9, 1)))
    assert shapes.is_contiguous(view)
    assert not shapes.is_contiguous(Tensor("v", (1, 3, 2, 5), view=View("x", 2, (7, 5, 9, 1))))
    assert contiguous((1, 3, 1, 5)) == (15, 5, 5, 1)


def test_a_plane_has_rows_without_gaps():
    def plane(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
        return shapes.is_plane(Tensor("v", shape, view=View("x", 0, strides)))

    assert plane((1, 3, 4, 5), (0, -99, 7, 1))
    assert plane((1, 3, 4, 1), (0, 99, 7, 3))
    assert not plane((1, 3, 4, 5), (60, 20, 1, 4))
    assert not plane((2, 3, 4, 5), (60, 20, 5, 1))
    assert not plane((3, 4, 5), (20, 5, 1))


@pytest.mark.parametrize("padding", [-1, 0, 1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_fit_into_what_they_spread_to(stride: int, kernel: int, padding: int):
    for dilation in (1, 2):
        for count in (1, 2, 5):
            wide = shapes.spread(count, kernel, stride, padding, dilation)
            assert shapes.windows(wide, kernel, stride, padding, dilation) == count
            assert shapes.windows(wide - 1, kernel, stride, padding, dilation) == count - 1
            assert shapes.windows(wide, kernel, stride, padding, dilation, ceil=True) == count
            if stride > 1:
                more = shapes.windows(wide + 1, kernel, stride, padding, dilation, ceil=True)
                assert more == count + 1
