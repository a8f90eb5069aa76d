"""The Pareto front, on any offers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.benchmarks.pareto import pareto_front

# Few values, so that equal ones are common.
NUMBERS = st.one_of(st.integers(0, 4).map(float), st.floats(allow_infinity=True))
OFFERS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(OFFERS)
def test_nobody_dominates_the_front_and_it_dominates_the_rest(
    offers: list[tuple[float, float]],
) -> None:
    front = pareto_front([cost for cost, _ in offers], [gain for _, gain in offers])
    assert len(set(front)) == len(front)
    kept = [offers[place] for place in front]
    assert not any(math.isnan(value) for offer in kept for value in offer)
    assert not any(dominates(one, other) for one in offers for other in kept)
    for place, offer in enumerate(offers):
        if place not in front:
            known = any(dominates(other, offer) for other in kept)
            assert known or any(map(math.isnan, offer))


@given(OFFERS)
def test_the_front_goes_from_cheap_to_dear(offers: list[tuple[float, float]]) -> None:
    front = pareto_front([cost for cost, _ in offers], [gain for _, gain in offers])
    kept = [offers[place] for place in front]
    assert kept == sorted(kept)


def test_a_front_by_hand() -> None:
    assert pareto_front([3, 1, 2, 2, 5, 1], [9, 4, 4, 7, 9, 4]) == [1, 5, 3, 0]
    assert pareto_front([], []) == []
