"""What the products of a graph are there for, found by the graph's structure alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from edgeadapt.runtime.profile.parts import Group


class Step(NamedTuple):
    """One operation: names of what it reads and writes."""

    reads: Collection[str]
    writes: Collection[str]
    # Of a convolution or matrix product what is multiplied, apart from what is added; of anything
    # else nothing.
    multiplies: Collection[str] = ()
    weights: Collection[str] = ()  # those among them that may be weights, or made of weights


def group_products(
    steps: Sequence[Step], values: Iterable[str], image: Iterable[str]
) -> list[Group | None]:
    """The group of each step that is a product, None for the others.

    Forward is what ``values``, the loss and the restored image, are made of. Of the backward pass,
    a product with something made of weights alone gives the gradient of what the weights were
    applied to. A product of two things that change with the ``image`` gives the gradient of a
    weight, unless another product follows from it: as in attention, where both factors are images.
    """
    forward = _ancestors(steps, values)
    changing = _descendants(steps, image)
    multiplied = _ancestors(steps, (name for step in steps for name in step.multiplies))
    found: list[Group | None] = []
    for step in steps:
        if not step.multiplies:
            found.append(None)
        elif not forward.isdisjoint(step.writes):
            found.append("forward")
        elif changing.issuperset(step.weights) and multiplied.isdisjoint(step.writes):
            found.append("weight-gradient")
        else:
            found.append("input-gradient")
    return found


def _ancestors(steps: Sequence[Step], names: Iterable[str]) -> set[str]:
    """What these are made of, themselves included."""
    found = set(names)
    for step in reversed(steps):
        if not found.isdisjoint(step.writes):
            found.update(step.reads)
    return found


def _descendants(steps: Sequence[Step], names: Iterable[str]) -> set[str]:
    """What is made of these, themselves included."""
    found = set(names)
    for step in steps:
        if not found.isdisjoint(step.reads):
            found.update(step.writes)
    return found
