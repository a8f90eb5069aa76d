"""How tensors are walked over: numbers without a division, axes without a difference."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.cuda.walk import AxesArgs, in_chunks, merge_axes, reciprocal


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 641, 2**16 + 1, 2**30, 2**31 - 1])
def test_a_multiplication_takes_the_place_of_a_division(divisor):
    multiplier, shift = reciprocal(divisor)
    assert 0 < multiplier < 2**32
    multiples = [k * divisor for k in (1, 2, 1000, (2**31 - 1) // divisor)]
    numbers = {0, 1, 2**31 - 1, *multiples, *(m - 1 for m in multiples)}
    for number in (n for n in numbers if n < 2**31):
        assert ((number * multiplier >> 32) + number) >> shift == number // divisor


def test_any_divisor_gives_the_quotient_of_any_number():
    rng = np.random.default_rng(1)
    for divisor, number in zip(
        (2 ** rng.uniform(0, 31, 2000)).astype(int).tolist(),
        (2 ** rng.uniform(0, 31, 2000)).astype(int).tolist(),
        strict=True,
    ):
        multiplier, shift = reciprocal(divisor)
        assert ((number * multiplier >> 32) + number) >> shift == number // divisor


def test_axes_that_follow_each_other_are_one():
    nhwc, bias = (15, 1, 15, 3), (0, 1, 0, 0)
    assert merge_axes((1, 3, 4, 5), [nhwc]) == ((60,), ((1,),))
    assert merge_axes((1, 3, 4, 5), [nhwc, bias]) == ((20, 3), ((3, 1), (0, 1)))
    assert merge_axes((1, 3, 4, 5), [nhwc, (60, 20, 5, 1)]) == ((20, 3), ((3, 1), (1, 20)))
    gaps = (0, 1, 32, 4)
    assert merge_axes((1, 3, 4, 5), [gaps]) == ((4, 5, 3), ((32, 4, 1),))
    assert merge_axes((), [()]) == ((), ((),))
    assert merge_axes((1, 1), [(5, 5)]) == ((), ((),))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "vector"),
    [
        ((7,), (1,), 0, True),
        ((7,), (1,), 1, False),
        ((7,), (2,), 0, False),
        ((5, 7), (8, 1), 0, True),
        ((5, 7), (9, 1), 0, False),
    ],
)
def test_only_chunks_that_are_aligned_are_moved_at_once(shape, strides, offset, vector):
    tensor = TensorArgs.at(256 + 4 * offset, shape, strides, "f32")
    chunks, (operand,) = in_chunks([tensor])
    assert chunks.length == 7
    assert chunks.axes.count == 2 * prod(shape) // 7
    assert operand.vector == vector
    assert operand.step == strides[-1]


def test_what_cannot_be_counted_in_32_bits_is_divided():
    assert not AxesArgs.of((2**16, 2**15 - 1)).wide
    assert AxesArgs.of((2**16, 2**15)).wide
