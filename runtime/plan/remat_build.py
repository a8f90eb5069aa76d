"""Writes down a program in which some values are computed again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeadapt.runtime.plan.ir import Op, Program, Tensor

Begins = Mapping[str, Sequence[int]]
_AGAIN = "..again"  # in the names of what is computed again


def build(program: Program, begins: Begins) -> tuple[Program, list[int]]:
    """``begins`` says for each base tensor in the arena in which slots (positions of operations) a
    version of it begins; the first is the original. What nobody reads any more is left out.

    Returns the program, and for each of its operations the slot in which it runs.
    """
    tensors: dict[str, Tensor] = dict(program.tensors)
    ops: list[tuple[Op, int]] = []
    again = _again(program, begins)
    for slot, op in enumerate(program.ops):
        for repeated in again.get(slot, ()):
            inputs = _versions(program, tensors, begins, repeated.inputs, slot)
            outputs = _versions(program, tensors, begins, repeated.outputs, slot)
            ops.append((replace(repeated, inputs=inputs, outputs=outputs), slot))
        inputs = _versions(program, tensors, begins, op.inputs, slot)
        ops.append((replace(op, inputs=inputs), slot))
    return _without_unread(replace(program, tensors=tensors), ops)


def _again(program: Program, begins: Begins) -> dict[int, list[Op]]:
    """The operations that run once more in each slot, operands before results as they were."""
    found: dict[int, list[Op]] = {}
    for op in program.ops:
        (name, *_) = op.outputs.values()
        for slot in begins.get(program.base(name), ())[1:]:
            found.setdefault(slot, []).append(op)
    return found


def _versions(
    program: Program,
    tensors: dict[str, Tensor],
    begins: Begins,
    roles: Mapping[str, str],
    slot: int,
) -> dict[str, str]:
    """How an operation in ``slot`` calls its operands; adds tensors that are not there yet."""
    found: dict[str, str] = {}
    for role, name in roles.items():
        base = program.base(name)
        number = bisect_right(begins.get(base, (0,)), slot) - 1
        found[role] = _numbered(name, number)
        if number > 0 and found[role] not in tensors:
            tensor = program.tensors[name]
            view = replace(tensor.view, base=_numbered(base, number)) if tensor.view else None
            tensors[found[role]] = replace(tensor, name=found[role], view=view)
            tensors.setdefault(
                _numbered(base, number),
                replace(program.tensors[base], name=_numbered(base, number)),
            )
    return found


def is_repeated(op: Op) -> bool:
    """Whether an operation of a built program computes something again."""
    return any(_AGAIN in name for name in op.outputs.values())


def original(name: str) -> str:
    """What a tensor was called before it was computed again; its own name if it was not."""
    return name.partition(_AGAIN)[0]


def _numbered(name: str, number: int) -> str:
    return f"{name}{_AGAIN}{number}" if number > 0 else name


def _without_unread(program: Program, ops: list[tuple[Op, int]]) -> tuple[Program, list[int]]:
    """Without operations that compute only what nobody reads."""
    read = {program.base(name) for name in program.outputs}
    kept: list[tuple[Op, int]] = []
    for op, slot in reversed(ops):
        written = [program.tensors[program.base(name)] for name in op.outputs.values()]
        if all(t.storage == "arena" and t.name not in read for t in written):
            continue
        kept.append((op, slot))
        read |= {program.base(name) for name in op.inputs.values()}
    kept.reverse()
    return replace(program, ops=tuple(op for op, _ in kept)), [slot for _, slot in kept]
