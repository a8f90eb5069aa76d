"""Expressions as csrc/pointwise.cu carries them out: where each step finds its operands."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from edgeadapt.kernels.pointwise import FUNCTIONS, Argument, Step

SLOTS = 16  # the most that a kernel has
# Sources of csrc/pointwise.cu; an input is its own number.
_NUMBER, _LAST, _FIRST_SLOT, _NOWHERE = 8, 9, 16, 255
_CODES = {name: code for code, name in enumerate(FUNCTIONS)}


class StepArgs(ctypes.Structure):
    """`Step` of csrc/pointwise.cu."""

    _fields_ = (("code", ctypes.c_int64), ("numbers", ctypes.c_double * 3))


class Encoded(NamedTuple):
    """What a kernel carries out."""

    steps: list[StepArgs]
    slots: int  # that hold results until they are read


def encode(expression: Sequence[Step]) -> Encoded:
    """The steps of an expression, without those that nobody reads.

    The result of the step before costs nothing; others wait in slots. An input that is read more
    than once is copied into one if there are enough. Results alone need at most 16: to join so
    many, a third of the 24 steps is left, and a step joins three.
    """
    needed = _without_unused(expression)
    uses = Counter(value for _, operands in needed for place, value in operands if place == "x")
    repeated = [value for value, count in uses.items() if count > 1]
    for kept in range(len(repeated), 0, -1):
        encoded = _assign(_with_copies(needed, repeated[:kept]))
        if encoded.slots <= SLOTS:
            return encoded
    return _assign(needed)


def _without_unused(expression: Sequence[Step]) -> list[Step]:
    used = {len(expression) - 1}
    for position in reversed(range(len(expression))):
        if position in used:
            used |= {value for place, value in expression[position][1] if place == "t"}
    return _renumbered([(k, expression[k]) for k in sorted(used)])


def _with_copies(expression: Sequence[Step], inputs: Sequence[int]) -> list[Step]:
    """Copy each of ``inputs`` before it is read first, and read the copy."""
    copied = len(expression)  # the number of the first copy, for now
    numbers = {value: copied + place for place, value in enumerate(inputs)}
    waiting, steps = dict(numbers), list[tuple[int, Step]]()
    for position, (function, operands) in enumerate(expression):
        for place, value in operands:
            if place == "x" and value in waiting:
                steps.append((waiting.pop(value), ("copy", (("x", value),))))
        read = tuple(
            ("t", numbers[value]) if place == "x" and value in numbers else (place, value)
            for place, value in operands
        )
        steps.append((position, (function, read)))
    return _renumbered(steps)


def _renumbered(steps: Sequence[tuple[int, Step]]) -> list[Step]:
    """Number steps, each given with the number it had, as they come."""
    numbers = {old: new for new, (old, _) in enumerate(steps)}

    def renamed(argument: Argument) -> Argument:
        place, value = argument
        return (place, numbers[value]) if place == "t" else argument

    return [
        (function, tuple(renamed(argument) for argument in operands))
        for _, (function, operands) in steps
    ]


def _assign(expression: Sequence[Step]) -> Encoded:
    """Give each result that is not read by the next step alone a slot until it was read last."""
    last_read: dict[int, int] = {}
    for position, (_, operands) in enumerate(expression):
        last_read |= {value: position for place, value in operands if place == "t"}
    slots: dict[int, int] = {}
    steps, most = [], 0
    for position, (function, operands) in enumerate(expression):
        sources = [_source(argument, position, slots) for argument in operands]
        # A step has read its operands when it writes: it may write the slot of one.
        slots = {step: slot for step, slot in slots.items() if last_read[step] > position}
        to = _NOWHERE
        if last_read.get(position, 0) > position + 1:
            to = min(set(range(len(slots) + 1)) - set(slots.values()))
            slots[position] = to
            most = max(most, to + 1)
        code = _CODES[function] | to << 8
        code |= sum(source << 16 + 8 * place for place, source in enumerate(sources))
        numbers = [value if place == "c" else 0.0 for place, value in operands]
        steps.append(StepArgs(code, (ctypes.c_double * 3)(*numbers)))
    return Encoded(steps, most)


def _source(argument: Argument, position: int, slots: dict[int, int]) -> int:
    place, value = argument
    if place == "c":
        return _NUMBER
    if place == "x":
        return int(value)
    return _LAST if value == position - 1 else _FIRST_SLOT + slots[value]
