"""What needs no kernel at all: results nobody reads, values known beforehand, values known already.

These passes also give every value one name, so that the fusions after them compare names.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from edgeadapt.runtime.plan import expressions
from edgeadapt.runtime.plan.edit import Edit
from edgeadapt.runtime.plan.expressions import Argument, Step
from edgeadapt.runtime.plan.ir import Op, Program, Tensor
from edgeadapt.runtime.plan.kinds import KINDS


def drop_dead(program: Program) -> Program:
    """Drop operations whose results nobody reads, and optional results nobody reads.

    What a program is read for are its outputs: the gradients of frozen parameters, and in a
    restoration all that only the loss needs, go here. Must not drop an operation one of whose
    results is read, nor one that writes into the memory of an output.
    """
    live = {program.base(name) for name in program.outputs}
    kept: list[Op] = []
    for op in reversed(program.ops):
        if live.isdisjoint(program.base(name) for name in op.outputs.values()):
            continue
        live.update(program.base(name) for name in op.inputs.values())
        optional = KINDS[op.kind].optional_outputs
        outputs = {
            role: name
            for role, name in op.outputs.items()
            if role not in optional or program.base(name) in live
        }
        kept.append(op if len(outputs) == len(op.outputs) else _with_outputs(op, outputs))
    edit = Edit(Program(program.tensors, tuple(reversed(kept)), program.outputs, program.constants))
    return edit.program()


def share_equal(program: Program) -> Program:
    """Give views of the same elements one name, and compute what is computed twice only once.

    Must not drop a result that is an output of the program, lies in the session's memory or is a
    view, as running sums are: its place is wanted too.
    """
    edit = Edit(program)
    names: dict[Hashable, str] = {t.name: t.name for t in edit.tensors.values() if not t.view}
    first: dict[Hashable, Op] = {}
    for key in sorted(edit.ops):
        op = edit.ops[key]
        inputs = {role: _one_name(edit, names, name) for role, name in op.inputs.items()}
        if inputs != op.inputs:
            op = Op(op.kind, inputs, op.outputs, op.attributes, op.origin)
            edit.put(key, op)
        same = first.setdefault(_fingerprint(edit, op), op)
        if same is not op and _can_share(edit, same, op):
            edit.drop(key)
            for role, name in op.outputs.items():
                edit.move(name, same.outputs[role])
    return edit.program()


def fold_constants(program: Program) -> Program:
    """Write tensors of one constant value as numbers into the expressions that read them, and
    work out what is known then.

    Must not fold a constant whose elements differ, nor a parameter: its value changes.
    """
    edit = Edit(program)
    known: dict[str, float | None] = {}
    for key in edit.keys("pointwise"):
        op = edit.ops[key]
        values = [_uniform(edit, known, name) for name in expressions.operands(op)]
        steps = _folded(op.attributes["expression"], values)
        if steps != op.attributes["expression"]:
            edit.put(key, expressions.rebuilt(op, steps, expressions.operands(op)))
    return edit.program()


def _with_outputs(op: Op, outputs: dict[str, str]) -> Op:
    return Op(op.kind, op.inputs, outputs, op.attributes, op.origin)


def _one_name(edit: Edit, names: dict[Hashable, str], name: str) -> str:
    tensor = edit.tensors[name]
    if tensor.view is None:
        return name
    base = edit.tensors[tensor.base]
    if edit.is_whole(name) and base.shape == tensor.shape:
        return base.name
    return names.setdefault(_layout(tensor), name)


def _layout(tensor: Tensor) -> Hashable:
    """What tells views of one base apart; the stride of an axis of length 1 means nothing."""
    axes = zip(tensor.shape, tensor.strides, strict=True)
    strides = tuple(stride if length > 1 else 0 for length, stride in axes)
    return (tensor.base, tensor.view.offset if tensor.view else 0, tensor.shape, strides)


def _fingerprint(edit: Edit, op: Op) -> Hashable:
    shapes = tuple((role, edit.tensors[name].shape) for role, name in sorted(op.outputs.items()))
    attributes = repr(sorted(op.attributes.items()))
    return (op.kind, tuple(sorted(op.inputs.items())), shapes, attributes)


def _can_share(edit: Edit, same: Op, op: Op) -> bool:
    for role, name in op.outputs.items():
        mine, other = edit.tensors[name], edit.tensors[same.outputs[role]]
        if mine.view or mine.storage != "arena" or edit.is_output(name):
            return False
        if other.view or mine.dtype != other.dtype or len(edit.writers(name)) > 1:
            return False
    return True


def _uniform(edit: Edit, known: dict[str, float | None], name: str) -> float | None:
    """The value of every element of the constant that ``name`` is or lies in; else None."""
    base = edit.base(name)
    if edit.tensors[base].storage != "constant":
        return None
    if base not in known:
        value = np.asarray(edit.constants[base])
        alike = value.size > 0 and bool((value == value.flat[0]).all())
        known[base] = float(value.flat[0]) if alike else None
    return known[base]


def _folded(steps: tuple[Step, ...], values: list[float | None]) -> tuple[Step, ...]:
    results: list[Argument] = []
    kept: list[Step] = []
    for function, arguments in steps:
        given = tuple(_number(argument, values, results) for argument in arguments)
        simple = _simplified(function, given)
        if simple is None:
            kept.append((function, given))
            simple = ("t", len(kept) - 1)
        results.append(simple)
    if results[-1] != ("t", len(kept) - 1):
        kept.append(("copy", (results[-1],)))
    return tuple(kept)


def _number(argument: Argument, values: list[float | None], results: list[Argument]) -> Argument:
    place, value = argument
    if place == "t":
        return results[value]
    if place == "x" and values[value] is not None:
        return ("c", values[value])
    return argument


def _simplified(function: str, given: tuple[Argument, ...]) -> Argument | None:
    """What a step is without computing it for each element; None if it has to be computed."""
    if all(place == "c" for place, _ in given) and function in _WITH_NUMBERS:
        try:
            return ("c", float(_WITH_NUMBERS[function](*(value for _, value in given))))
        except (ZeroDivisionError, ValueError, OverflowError):
            return None
    match function, given:
        case ("copy", (x,)):
            return x
        case ("mul", (x, ("c", 1.0)) | (("c", 1.0), x)) | ("div" | "pow", (x, ("c", 1.0))):
            return x
        case ("add", (x, ("c", 0.0)) | (("c", 0.0), x)) | ("sub", (x, ("c", 0.0))):
            return x
    return None


_WITH_NUMBERS: dict[str, Any] = {
    "neg": lambda a: -a,
    "abs": abs,
    "sqrt": lambda a: a**0.5 if a >= 0 else float("nan"),
    "reciprocal": lambda a: 1 / a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
