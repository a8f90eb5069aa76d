"""Concatenations: read in parts where they are read, written in parts where they must exist."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.runtime.plan.edit import Edit, Key
from edgeadapt.runtime.plan.ir import Op, Program, View
from edgeadapt.runtime.plan.kinds import MAX_SOURCES
from edgeadapt.runtime.plan.shapes import is_contiguous, is_plane

SOURCES = tuple(f"x{i}" for i in range(MAX_SOURCES))


def read_parts(program: Program) -> Program:
    """Let convolutions and their weight gradients read the parts of a concatenation of channels.

    Parts that are concatenations themselves are read in their parts, as far as four sources go.
    Must not be done for more than four parts, for another axis, for grouped convolutions (a group
    would reach across sources), for parts whose rows are not contiguous, nor for the ``grad_y`` of
    a weight gradient, which is one tensor.
    """
    edit = Edit(program)
    for key in edit.keys("conv", "conv_weight_grad"):
        op = edit.ops[key]
        names = [op.inputs[role] for role in SOURCES if role in op.inputs]
        if op.attributes["group"] != 1:
            continue
        parts = _parts(edit, names)
        if parts != names:
            roles: dict[str, str | None] = dict.fromkeys(SOURCES)
            roles.update(zip(SOURCES, parts, strict=False))
            edit.put(key, op.with_inputs(**roles))
    return edit.program()


def write_parts(program: Program) -> Program:
    """Leave no concatenation: each part is computed in its place in the result, or copied there.

    A part is computed in place if nothing else reads it, so that it does not keep the whole result
    alive, and if its place is contiguous. Must not be done for a part that is an output, a view,
    or belongs to the session, nor for one that is concatenated twice.
    """
    edit = Edit(program)
    # The outer ones first: a concatenation that is a part is moved while it is one operation.
    for key in reversed(list(edit.keys("concat"))):
        op = edit.ops[key]
        edit.drop(key)
        offset = 0
        for number in range(len(op.inputs)):
            name = op.inputs[f"x{number}"]
            offset += _write_part(edit, (*key, number), op, name, offset)
    return edit.program()


def _parts(edit: Edit, names: list[str]) -> list[str]:
    """``names`` with concatenations replaced by their parts, the first ones first, while the
    number of sources allows."""
    index = 0
    while index < len(names):
        inner = _channels(edit, names[index])
        if inner and len(names) + len(inner) - 1 <= MAX_SOURCES:
            names = [*names[:index], *inner, *names[index + 1 :]]
        else:
            index += 1
    return names


def _channels(edit: Edit, name: str) -> list[str]:
    """The parts of a concatenation along channels that ``name`` is the whole of; else none."""
    key = edit.producer(name)
    if key is None or edit.ops[key].kind != "concat" or edit.ops[key].outputs["y"] != name:
        return []
    op = edit.ops[key]
    parts = [op.inputs[f"x{i}"] for i in range(len(op.inputs))]
    planar = all(is_plane(edit.tensors[part]) for part in parts)
    return parts if op.attributes["axis"] == 1 and planar else []


def _write_part(edit: Edit, key: Key, op: Op, name: str, offset: int) -> int:
    """Let ``name`` be at ``offset`` along the axis of the result of ``op``; returns its length."""
    part, whole = edit.tensors[name], edit.tensors[op.outputs["y"]]
    axis = op.attributes["axis"] % len(whole.shape)
    begin = (whole.view.offset if whole.view else 0) + offset * whole.strides[axis]
    place = edit.add(
        replace(
            whole,
            name=f"{whole.name}[{offset}]",
            shape=part.shape,
            view=View(whole.base, begin, whole.strides),
            offset=0,
        )
    )
    if not _can_move(edit, name, place):
        step = (("copy", (("x", 0),)),)
        edit.put(key, Op("pointwise", {"x0": name}, {"y": place}, {"expression": step}, op.origin))
    else:
        edit.move(name, place)
    return part.shape[axis]


def _can_move(edit: Edit, name: str, place: str) -> bool:
    """Whether ``name`` can lie at ``place`` from the start; the concatenation is dropped already,
    so that nothing else may read it."""
    part, where = edit.tensors[name], edit.tensors[place]
    if part.view or part.storage != "arena" or part.dtype != where.dtype:
        return False
    if edit.is_output(name) or edit.readers(name) or edit.producer(name) is None:
        return False
    return is_contiguous(where)
