from __future__ import annotations

import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.runtime.profile.statistics import spread

TIMES = st.lists(st.floats(1e-6, 1e3, allow_subnormal=False), min_size=1, max_size=60)
PERCENTS = st.integers(0, 100)


def of_trtexec(values: list[float], percent: int) -> float:
    """What trtexec takes: so many of the largest are left out, rounded down (in whole numbers)."""
    exclude = math.floor((1 - Fraction(percent, 100)) * len(values))
    return sorted(values)[max(len(values) - 1 - exclude, 0)]


@given(TIMES, st.lists(PERCENTS, max_size=4))
def test_percentiles_are_those_of_trtexec(values: list[float], percents: list[int]) -> None:
    found = spread(values, percents).percentiles
    assert found == tuple((percent, of_trtexec(values, percent)) for percent in percents)


@given(TIMES)
def test_the_rest_is_what_pythons_own_statistics_say(values: list[float]) -> None:
    found = spread(values)
    mean = statistics.fmean(values)
    assert (found.count, found.minimum, found.maximum) == (len(values), min(values), max(values))
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.median == statistics.median(values)
    # The deviation of equal values is rounding: some ulps of the mean.
    expected = statistics.pstdev(values) / mean
    assert found.variation == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_nothing_cannot_be_summed_up() -> None:
    with pytest.raises(ValueError, match="nothing to sum up"):
        spread([])


def test_a_percentile_lies_within_0_and_100() -> None:
    with pytest.raises(ValueError, match="range"):
        spread([1.0], [101])
