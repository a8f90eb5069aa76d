"""Keeps gradients within the range of float16: all of them are multiplied by one power of two.

The gradient of a mean over a million pixels is a millionth, and what float16 still holds ends
there. A backward pass is linear in the gradient of the loss, so that a factor in front of it is a
factor in front of every gradient, which the optimizer takes off again: nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, log2
from typing import Any

from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.plan.ir import Op, Program

Degree = int | None  # how often the factor is in a value; None: the value is 0

_SMALL = 1 / 16  # of any mean over an image's pixels the number by which it divides is smaller
_SIGN = ("sign",)  # the same whatever positive factor there is
_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_LINEAR = ("copy", "neg", "abs", "add", "sub", "max", "min")  # of arguments with one factor
# Operations that move or add up pixels.
_SAME_KINDS = ("resize", "resize_grad", "avg_pool", "avg_pool_grad", "max_pool", "pad", "pad_grad")


class MixedError(Exception):
    """The factor would be in a part of a value."""


def scale_gradients(program: Program) -> tuple[Program, float]:
    """Multiply the gradients of the losses, and so all that come from them; returns the factor too.

    A loss's gradient is where the backward pass first multiplies by a small number, or that of an
    `l1_loss`. The largest such number becomes more than a half and at most 1. The factor is 1 where
    no gradients of parameters are asked for.

    Raises:
        MixedError: if the factor would not be in front of every gradient of a parameter.
    """
    wanted = [name for name in program.outputs if name.startswith(GRADIENT_PREFIX)]
    if not wanted:
        return program, 1.0
    degrees: dict[str, Degree] = {
        name: 0 if value.any() else None for name, value in program.constants.items()
    }
    backward = _backward_only(program)
    seeds: dict[int, _Seeds] = {}
    for position, op in enumerate(program.ops):
        found = _Seeds(position in backward)
        _spread(op, program, degrees, found)
        if found.numbers:
            seeds[position] = found
    for name in wanted:
        if not seeds or degrees.get(program.base(name), 0) == 0:
            raise MixedError(f"{name} does not come from a loss")
    largest = max(number for found in seeds.values() for number in found.numbers)
    factor = 2.0 ** -(floor(log2(largest)) + 1)
    ops = [_times(op, factor, seeds[n]) if n in seeds else op for n, op in enumerate(program.ops)]
    return replace(program, ops=tuple(ops)), factor


@dataclass
class _Seeds:
    """Where an operation multiplies what has no factor yet by a small number."""

    allowed: bool  # whether only gradients follow from the operation
    steps: set[int] = field(default_factory=set)  # of a pointwise expression
    numbers: list[float] = field(default_factory=list)  # their magnitudes


def _backward_only(program: Program) -> set[int]:
    """Operations from which no output follows but gradients."""
    needed = {program.base(n) for n in program.outputs if not n.startswith(GRADIENT_PREFIX)}
    found = set()
    for position in reversed(range(len(program.ops))):
        op = program.ops[position]
        if any(program.base(name) in needed for name in op.outputs.values()):
            needed |= {program.base(name) for name in op.inputs.values()}
        else:
            found.add(position)
    return found


def _times(op: Op, factor: float, seeds: _Seeds) -> Op:
    """The same with its small numbers multiplied."""
    if op.kind == "l1_loss":
        return op.with_attributes(grad_scale=op.attributes["grad_scale"] * factor)
    steps = list(op.attributes["expression"])
    for position in seeds.steps:
        function, arguments = steps[position]
        changed = [(kind, value * factor if kind == "c" else value) for kind, value in arguments]
        if function == "div" and arguments[1][0] == "c":
            changed[1] = ("c", arguments[1][1] / factor)
        steps[position] = (function, tuple(changed))
    return op.with_attributes(expression=tuple(steps))


def _spread(op: Op, program: Program, degrees: dict[str, Degree], seeds: _Seeds) -> None:
    """Note how often the factor is in what an operation writes, and where it comes in."""
    inputs = {role: degrees.get(program.base(name), 0) for role, name in op.inputs.items()}
    try:
        results = _results(op, inputs, seeds)
        for role, name in op.outputs.items():
            base, found = program.base(name), results.get(role, results["y"])
            degrees[base] = _same([degrees[base], found]) if base in degrees else found
    except MixedError as error:
        raise MixedError(f"{op.kind} ({op.origin}) {error}") from None


def _results(op: Op, at: Mapping[str, Degree], seeds: _Seeds) -> dict[str, Degree]:
    """The degree of each output; "y" is that of the others."""
    sources = [at[role] for role in ("x0", "x1", "x2", "x3") if role in at]
    if op.kind == "conv":
        added = [at[role] for role in ("bias", "add0", "add1", "post") if role in at]
        return {"y": _same([_product([_same(sources), at["weight"]]), *added])}
    if op.kind == "conv_weight_grad":
        x, grad_y = _same(sources), at["grad_y"]
        bias = [x if op.attributes["bias_of"] == "x" else grad_y]
        weight = [_product([x, grad_y])]
        bias += [at["sum_bias"]] if "sum_bias" in at else []
        weight += [at["sum_weight"]] if "sum_weight" in at else []
        return {"y": _same(weight), "bias": _same(bias)}
    if op.kind == "pointwise":
        return {"y": _expression(op, at, seeds)}
    if op.kind == "l1_loss":
        if "grad" in op.outputs:
            seeds.numbers.append(abs(float(op.attributes["grad_scale"])))
        return {"y": _plain(at.values()), "grad": 1}
    if op.kind == "matmul":
        return {"y": _product(at.values())}
    if op.kind == "max_pool_grad":
        return {"y": at["grad_y"]}
    if op.kind == "reduce":
        found = op.attributes
        linear = found["before"] != "square" and found["how"] != "prod" and not found["after"]
        return {"y": at["x"] if linear else _plain(at.values())}
    if op.kind in _SAME_KINDS and not op.attributes.get("value"):
        return {"y": _same(at.values())}
    return {"y": _plain(at.values())}


def _expression(op: Op, at: Mapping[str, Degree], seeds: _Seeds) -> Degree:
    steps: list[Degree] = []
    for position, (function, arguments) in enumerate(op.attributes["expression"]):
        given = [_argument(one, at, steps) for one in arguments]
        small = _small(function, arguments, given) if seeds.allowed else 0.0
        if small:
            seeds.steps.add(position)
            seeds.numbers.append(small)
        steps.append(1 if small else _step(function, given))
    return steps[-1]


def _small(function: str, arguments: Sequence[tuple[str, Any]], given: Sequence[Degree]) -> float:
    """The small number by which a step multiplies what has no factor, or which it chooses."""
    numbers = [abs(float(value)) if kind == "c" else 0.0 for kind, value in arguments]
    if function == "div":
        numbers = [numbers[0], 1 / numbers[1] if numbers[1] else 0.0]
    elif function == "where":
        numbers[0] = 0.0
        others = [given[i] for i in (1, 2) if not 0 < numbers[i] <= _SMALL]
        return 0.0 if 0 in others else _smallest(numbers)
    elif function != "mul":
        return 0.0
    return 0.0 if any(given) else _smallest(numbers)


def _smallest(numbers: Sequence[float]) -> float:
    return min((number for number in numbers if 0 < number <= _SMALL), default=0.0)


def _argument(
    argument: tuple[str, Any], at: Mapping[str, Degree], steps: Sequence[Degree]
) -> Degree:
    kind, value = argument
    if kind == "c":
        return 0 if value else None
    return at[f"x{value}"] if kind == "x" else steps[value]


def _step(function: str, given: Sequence[Degree]) -> Degree:
    if function in _LINEAR:
        return _same(given)
    if function in _SIGN:
        return 0
    if function in _COMPARISONS:
        _same(given)
        return 0
    if function == "mul":
        return _product(given)
    if function in ("leaky", "leaky_grad", "div"):
        _plain([given[-1]])  # the slope, or what is divided by
        return given[0]
    if function == "where":
        return _same(given[1:])
    return _plain(given)


def _same(degrees: Iterable[Degree]) -> Degree:
    """Of a sum: all terms that are not 0 have the factor equally often."""
    found = {degree for degree in degrees if degree is not None}
    if len(found) > 1:
        raise MixedError("adds what has the factor to what does not")
    return found.pop() if found else None


def _product(degrees: Iterable[Degree]) -> Degree:
    found = list(degrees)
    if any(degree is None for degree in found):
        return None
    total = sum(degree or 0 for degree in found)
    if total > 1:
        raise MixedError("multiplies two gradients")
    return total


def _plain(degrees: Iterable[Degree]) -> Degree:
    if any(degrees):
        raise MixedError("is not linear")
    return 0
