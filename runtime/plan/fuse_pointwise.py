"""Pointwise operations: chains become one expression, copies disappear."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.runtime.plan.edit import Edit, Key
from edgeadapt.runtime.plan.expressions import call, inlined, operands, rebuilt
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.kinds import MAX_INPUTS, MAX_STEPS
from edgeadapt.runtime.plan.shapes import is_contiguous


def merge_chains(program: Program) -> Program:
    """Compute a pointwise operation within the only one that reads it.

    The merged operation runs where the reader ran. Must not be done when the result is an output
    or read by two operations, when it is read through a view (broadcast, transposed: its elements
    would be computed many times or in another order), nor beyond the number of inputs and steps
    that a kernel takes.
    """
    edit = Edit(program)
    for key in edit.keys("pointwise"):
        while _merge_one(edit, key):
            pass
    return edit.program()


def recognise_rectifiers(program: Program) -> Program:
    """Write the derivative of a ReLU, "nothing where x <= 0, else the gradient", as `leaky_grad`.

    So that convolutions can take it. Must not be done for another bound or another value than 0.
    """
    edit = Edit(program)
    for key in edit.keys("pointwise"):
        found = _relu_grad(edit, edit.ops[key])
        if found:
            steps = (("leaky_grad", (("x", 0), ("x", 1), ("c", 0.0))),)
            edit.put(key, rebuilt(edit.ops[key], steps, found))
    return edit.program()


def fuse_before_reduce(program: Program) -> Program:
    """Let a reduction take the magnitude or the square of what it reads.

    Must not be done when it takes one already, or when the magnitudes are read elsewhere too.
    """
    edit = Edit(program)
    for key in edit.keys("reduce"):
        op = edit.ops[key]
        x = op.inputs["x"]
        maker = edit.producer(x)
        if maker is None or edit.sole_reader(x) != key or op.attributes["before"] is not None:
            continue
        before, source = _magnitude(edit.ops[maker])
        if before and edit.ops[maker].outputs["y"] == x:
            edit.put(key, op.with_inputs(x=source).with_attributes(before=before))
            edit.drop(maker)
    return edit.program()


def drop_copies(program: Program) -> Program:
    """Let a value be computed where it is copied to, or be read where it is copied from.

    Must not be done for a copy that changes the type or the order of elements. A value moves into
    memory of the session whoever reads it; into a part of a larger tensor only if nothing else
    reads it, since it would keep the whole alive. Memory of the session that changes (weights) is
    not read in place of a copy.
    """
    edit = Edit(program)
    for key in edit.keys("pointwise"):
        function, given = call(edit.ops[key])
        if function == "copy" and isinstance(given[0], str):
            _drop_copy(edit, key, given[0], edit.ops[key].outputs["y"])
    return edit.program()


def _merge_one(edit: Edit, key: Key) -> bool:
    op = edit.ops[key]
    for name in operands(op):
        maker = edit.producer(name)
        if maker is None or edit.sole_reader(name) != key:
            continue
        inner = edit.ops[maker]
        if inner.kind != "pointwise" or inner.outputs["y"] != name:
            continue
        steps, names = inlined(op, {name: inner})
        merged = rebuilt(replace(op, origin=f"{inner.origin}, {op.origin}"), steps, names)
        if len(steps) <= MAX_STEPS and len(merged.inputs) <= MAX_INPUTS:
            edit.drop(maker)
            edit.put(key, merged)
            return True
    return False


def _relu_grad(edit: Edit, op: Op) -> tuple[str, str] | None:
    """Gradient and x, if ``op`` gives the gradient where x > 0 and 0 elsewhere."""
    match call(op):
        case ("where", (str(condition), 0.0, str(grad))):
            wanted = "le"
        case ("where", (str(condition), str(grad), 0.0)):
            wanted = "gt"
        case _:
            return None
    maker = edit.producer(condition)
    if maker is None or edit.ops[maker].outputs["y"] != condition:
        return None
    match call(edit.ops[maker]):
        case (function, (str(x), 0.0)) if function == wanted:
            return grad, x
    return None


def _magnitude(op: Op) -> tuple[str | None, str]:
    match call(op):
        case ("abs", (str(x),)):
            return "abs", x
        case ("mul", (str(x), y)) if x == y:
            return "square", x
        case ("pow", (str(x), 2.0)):
            return "square", x
    return None, ""


def _drop_copy(edit: Edit, key: Key, source: str, result: str) -> None:
    old, new = edit.tensors[source], edit.tensors[result]
    alike = old.dtype == new.dtype and is_contiguous(old) and is_contiguous(new)
    if not alike or old.base == new.base:
        return
    if _can_be_computed_there(edit, source, result):
        edit.drop(key)
        edit.move(old.base, result)
    elif _can_be_read_there(edit, source, result) and edit.writers(result) == [key]:
        edit.drop(key)
        edit.move(result, source)


def _can_be_read_there(edit: Edit, source: str, result: str) -> bool:
    new = edit.tensors[result]
    steady = edit.tensors[source].storage in ("arena", "image", "constant")
    return steady and new.storage == "arena" and not new.view and not edit.is_output(result)


def _can_be_computed_there(edit: Edit, source: str, result: str) -> bool:
    base = edit.tensors[edit.base(source)]
    if base.storage != "arena" or edit.producer(source) is None or not edit.is_whole(source):
        return False
    if edit.is_output(source):
        return False
    shared = edit.tensors[result].storage != "arena"
    return shared or edit.sole_reader(source) is not None
