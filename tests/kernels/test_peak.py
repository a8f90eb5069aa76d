"""The kernels that measure a machine do the work that they are credited with."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.library import LANES
from edgeadapt.kernels.peak import CHAINS, chains_arguments, copy_arguments
from edgeadapt.kernels.reference import peak as reference

ULP = 2.0**-23
BLOCK = 1 << 18  # elements of a task of the copy


@pytest.mark.parametrize("rounds", [0, 1, 37])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_value_is_multiplied_as_often_as_said(call, guards, level, threads, rounds):
    # Of a factor near 1 the result tells how often; each round rounds once or twice.
    start = np.random.default_rng(rounds).uniform(1, 2, (3, CHAINS, LANES[level]))
    values = guards.copy(start.astype(np.float32))
    call("peak_multiply", chains_arguments(values, rounds, 1.03125, -0.25), threads)
    expected = reference.multiply(start.astype(np.float32).astype(float), rounds, 1.03125, -0.25)
    largest = max(np.abs(expected).max(), 2) * 1.03125
    np.testing.assert_allclose(values, expected, rtol=0, atol=(rounds or 0) * ULP * 2 * largest)


@pytest.mark.parametrize("rounds", [0, 1, 37])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_value_gets_as_many_products(call, guards, level, threads, rounds):
    start = np.random.default_rng(rounds).uniform(1, 2, (3, CHAINS, LANES[level]))
    values = guards.copy(start.astype(np.float32))
    # Exact in bfloat16: eight bits of mantissa.
    call("peak_dot", chains_arguments(values, rounds, 1.0078125, -0.03125), threads)
    expected = reference.dot(start.astype(np.float32).astype(float), rounds, 1.0078125, -0.03125)
    np.testing.assert_allclose(values, expected, rtol=0, atol=rounds * 2 * ULP * 4)


def test_the_factors_of_dot_are_rounded_to_bfloat16(call, guards, level):
    values = guards.copy(np.zeros((1, CHAINS, LANES[level]), np.float32))
    call("peak_dot", chains_arguments(values, 1, 1 + 2.0**-10, 1.0))
    assert (values == 2).all()


@pytest.mark.parametrize("past_caches", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [16, 48, BLOCK + 16, 2 * BLOCK])
def test_copy(call, guards, count, threads, past_caches):
    values = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    source, target = guards.copy(values), guards.empty((count,))
    call("peak_copy", copy_arguments(source, target, past_caches), threads)
    assert (target == values).all()
    call("peak_copy", copy_arguments(target, target, past_caches), threads)
    assert (target == values).all()


def test_what_does_not_fit_is_refused(guards):
    values = np.zeros((2, CHAINS, 8), np.float32)
    with pytest.raises(ArrayError, match=r"values must be \(tasks, 12, lanes\), got \(2, 11, 8\)"):
        chains_arguments(np.zeros((2, 11, 8), np.float32), 1, 1, 1)
    with pytest.raises(ArrayError, match=r"contiguous float32 \(tasks, 12, lanes\), got float64"):
        chains_arguments(np.zeros(values.shape), 1, 1, 1)
    with pytest.raises(ArrayError, match="rounds must be at least 0, got -1"):
        chains_arguments(values, -1, 1, 1)
    line = guards.empty((32,))
    with pytest.raises(ArrayError, match=r"source must .* float32 \(31,\) at 0 bytes behind"):
        copy_arguments(line[:31], line[:31], True)
    with pytest.raises(ArrayError, match=r"target must .* float32 \(16,\) at 4 bytes behind"):
        copy_arguments(line[:16], guards.empty((17,))[1:], True)
    with pytest.raises(ArrayError, match="target must have 32 elements, got 16"):
        copy_arguments(line, guards.empty((16,)), True)
