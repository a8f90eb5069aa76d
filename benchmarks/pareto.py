"""Which of several offers nobody can better."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Positions of the offers that no other dominates, cheapest first.

    One dominates another if it costs no more and gains no less, and is better in one of the two. Of
    equal offers all are in the front. What is not a number is in no front.
    """
    order = [i for i in range(len(costs)) if costs[i] == costs[i] and gains[i] == gains[i]]
    order.sort(key=lambda i: (costs[i], -gains[i]))
    front: list[int] = []
    for i in order:
        # The last of the front gains most of all that cost no more.
        last = front[-1] if front else None
        if (
            last is None
            or gains[i] > gains[last]
            or (costs[i], gains[i]) == (costs[last], gains[last])
        ):
            front.append(i)
    return front
