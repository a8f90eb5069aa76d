"""Expressions of pointwise operations: read as calls, put together, simplified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeadapt.runtime.plan.ir import Op

Argument = tuple[str, Any]  # ("x", input), ("t", step) or ("c", number)
Step = tuple[str, tuple[Argument, ...]]
Expression = tuple[Step, ...]
Operand = str | float  # a tensor's name or a number


def call(op: Op) -> tuple[str, tuple[Operand, ...]]:
    """Function and operands of a pointwise operation of one step; ("", ()) for any other."""
    if op.kind != "pointwise" or len(op.attributes["expression"]) != 1:
        return "", ()
    function, arguments = op.attributes["expression"][0]
    return function, tuple(
        op.inputs[f"x{value}"] if place == "x" else float(value) for place, value in arguments
    )


def rectifier(op: Op) -> tuple[str, float] | None:
    """Input and slope of a LeakyReLU or ReLU that keeps the sign of what is positive."""
    match call(op):
        case ("leaky", (str(x), float(slope))) if slope >= 0:
            return x, slope
        case ("max", (str(x), 0.0)) | ("max", (0.0, str(x))):
            return x, 0.0
    return None


def rectifier_grad(op: Op) -> tuple[str, str, float] | None:
    """Gradient, sign-giving input and slope of the derivative of a LeakyReLU."""
    match call(op):
        case ("leaky_grad", (str(grad), str(x), float(slope))):
            return grad, x, slope
    return None


def sum_of(op: Op) -> tuple[str, str] | None:
    """The two tensors that a pointwise operation adds, if that is all it does."""
    match call(op):
        case ("add", (str(a), str(b))):
            return a, b
    return None


def factor(op: Op, x: str) -> float | None:
    """The number by which a pointwise operation multiplies ``x``, if that is all it does."""
    match call(op):
        case ("neg", (y,)) if y == x:
            return -1.0
        case ("mul", (y, float(c))) | ("mul", (float(c), y)) if y == x:
            return c
        case ("div", (y, float(c))) if y == x and c != 0:
            return 1.0 / c
    return None


def rebuilt(op: Op, steps: Expression, operands: Sequence[str]) -> Op:
    """``op`` with these steps; their input i is ``operands[i]``, which may repeat or be unused."""
    number: dict[str, int] = {}
    for _, arguments in steps:
        for place, value in arguments:
            if place == "x":
                number.setdefault(operands[value], len(number))
    renamed = tuple(
        (function, tuple(("x", number[operands[v]]) if p == "x" else (p, v) for p, v in arguments))
        for function, arguments in steps
    )
    roles = {f"x{i}": name for name, i in number.items()}
    return Op(op.kind, roles, op.outputs, {**op.attributes, "expression": renamed}, op.origin)


def operands(op: Op) -> list[str]:
    """Input tensors of a pointwise operation by number."""
    return [op.inputs[f"x{i}"] for i in range(len(op.inputs))]


def inlined(op: Op, producers: Mapping[str, Op]) -> tuple[Expression, list[str]]:
    """Steps and operands of ``op`` with the expressions of ``producers`` (by the input of ``op``
    that each writes) in place of those inputs. Steps that occur twice are computed once."""
    steps: list[Step] = []
    index: dict[Step, int] = {}
    names: list[str] = []

    def add(expression: Expression, inputs: Mapping[int, Argument]) -> Argument:
        results: list[Argument] = []
        for function, arguments in expression:
            given = tuple(
                inputs[v] if p == "x" else results[v] if p == "t" else (p, v) for p, v in arguments
            )
            if function == "copy":
                results.append(given[0])
                continue
            step = (function, given)
            if step not in index:
                index[step] = len(steps)
                steps.append(step)
            results.append(("t", index[step]))
        return results[-1]

    def outside(name: str) -> Argument:
        if name not in names:
            names.append(name)
        return ("x", names.index(name))

    bound: dict[int, Argument] = {}
    for i, name in enumerate(operands(op)):
        if name in producers:
            inner = producers[name]
            inputs = {j: outside(other) for j, other in enumerate(operands(inner))}
            bound[i] = add(inner.attributes["expression"], inputs)
        else:
            bound[i] = outside(name)
    result = add(op.attributes["expression"], bound)
    # The last step is the result: a shared step that lies further in front is copied.
    if result != ("t", len(steps) - 1):
        steps.append(("copy", (result,)))
    return tuple(steps), names
