"""Small expressions evaluated for each element: csrc/pointwise.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import TensorArgs

# How many operands each function takes. The order is that of `Function` in csrc/pointwise.cpp.
FUNCTIONS: Mapping[str, int] = {
    "copy": 1, "neg": 1, "abs": 1, "sign": 1, "sqrt": 1, "reciprocal": 1, "exp": 1, "log": 1,
    "sin": 1, "cos": 1, "tanh": 1, "sigmoid": 1, "softplus": 1, "erf": 1, "floor": 1, "round": 1,
    "not": 1, "add": 2, "sub": 2, "mul": 2, "div": 2, "pow": 2, "max": 2, "min": 2,
    "gt": 2, "ge": 2, "lt": 2, "le": 2, "eq": 2, "ne": 2, "and": 2, "or": 2,
    "where": 3,  # condition, then, otherwise
    "leaky": 2,  # x, slope
    "leaky_grad": 3,  # grad_y, x, slope: grad_y where x > 0, slope * grad_y elsewhere
}  # fmt: skip
MAX_INPUTS = 8
MAX_STEPS = 24
_CODES = {name: code for code, name in enumerate(FUNCTIONS)}

# A step is (function, arguments); an argument is ("x", input), ("t", step) or ("c", number).
Argument = tuple[str, Any]
Step = tuple[str, tuple[Argument, ...]]


class Operand(ctypes.Structure):
    """`Operand` of csrc/pointwise.cpp."""

    _fields_ = (("source", ctypes.c_int64), ("value", ctypes.c_double))


class StepArgs(ctypes.Structure):
    """`Step` of csrc/pointwise.cpp."""

    _fields_ = (
        ("function", ctypes.c_int64),
        ("slot", ctypes.c_int64),
        ("operands", Operand * 3),
    )


class PointwiseArgs(ctypes.Structure):
    """`PointwiseArgs` of csrc/pointwise.cpp."""

    _fields_ = (
        ("y", TensorArgs),
        ("x", TensorArgs * MAX_INPUTS),
        ("inputs", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("step", StepArgs * MAX_STEPS),
    )


def pointwise(x: Sequence[TensorArgs], y: TensorArgs, expression: Sequence[Step]) -> PointwiseArgs:
    """Arguments of a call that writes the last step of ``expression`` to ``y``.

    All tensors have one shape of up to six axes, any strides (0 repeats) and any type; bool reads
    as 0 and 1. ``y`` is written with ``=`` and may be the memory of an input with the same strides.

    Raises:
        ArrayError: if shapes differ, y repeats an element, or the expression is none.
    """
    shape = tuple(y.shape[: y.rank])
    if 0 in shape:
        raise ArrayError(f"pointwise: y must have elements, got shape {shape}.")
    if any(size > 1 and y.strides[axis] == 0 for axis, size in enumerate(shape)):
        raise ArrayError("pointwise: y must not repeat an element, got a stride of 0.")
    if len(x) > MAX_INPUTS:
        raise ArrayError(f"pointwise: x must be up to {MAX_INPUTS} tensors, got {len(x)}.")
    arguments = PointwiseArgs(y=y, inputs=len(x), steps=len(expression))
    for position, tensor in enumerate(x):
        if tuple(tensor.shape[: tensor.rank]) != shape:
            raise ArrayError(
                f"pointwise: x{position} must have the shape of y, {shape}, got "
                f"{tuple(tensor.shape[: tensor.rank])}."
            )
        arguments.x[position] = tensor
    check_expression(expression, len(x))
    slots = _share_slots(expression)
    for position, (function, operands) in enumerate(expression):
        step = arguments.step[position]
        step.function, step.slot = _CODES[function], slots[position]
        for place, argument in enumerate(operands):
            step.operands[place] = _operand(argument)
    return arguments


def _operand(argument: Argument) -> Operand:
    place, value = argument
    if place == "c":
        return Operand(-1, value)
    return Operand(value if place == "x" else MAX_INPUTS + value, 0.0)


def check_expression(expression: Sequence[Step], inputs: int) -> None:
    """Raise an `ArrayError` unless ``expression`` is one of ``inputs`` inputs."""
    if not 1 <= len(expression) <= MAX_STEPS:
        raise ArrayError(
            f"pointwise: an expression must have 1 to {MAX_STEPS} steps, got {len(expression)}."
        )
    for position, (function, operands) in enumerate(expression):
        if FUNCTIONS.get(function) != len(operands):
            raise ArrayError(
                f"pointwise: no function {function!r} of {len(operands)} arguments; there are "
                f"{', '.join(FUNCTIONS)}."
            )
        for place, value in operands:
            limit = {"x": inputs, "t": position}.get(place, 0)
            if place != "c" and not (isinstance(value, int) and 0 <= value < limit):
                raise ArrayError(
                    f"pointwise: step {position} reads {place}{value}, which is not there."
                )


def _share_slots(expression: Sequence[Step]) -> list[int]:
    """A buffer for each step: as few as possible, so that all of them stay in the cache.

    A step may write the buffer it reads.
    """
    last_read = {
        value: position
        for position, (_, operands) in enumerate(expression)
        for place, value in operands
        if place == "t"
    }
    free, slots = list(range(MAX_STEPS)), list[int]()
    for position, (_, operands) in enumerate(expression):
        ended = {v for place, v in operands if place == "t" and last_read[v] == position}
        free = sorted(free + [slots[step] for step in ended])
        slots.append(free.pop(0))
        if position not in last_read:  # nobody reads it
            free.append(slots[-1])
    return slots
