"""The tensors between a program's operations, by names that one operation writes."""

from __future__ import annotations

from collections.abc import Iterable

from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.profile.parts import Operand


def operands_of(program: Program) -> list[tuple[tuple[Operand, ...], tuple[Operand, ...]]]:
    """What each operation reads and writes.

    A tensor that one operation writes has its own name, whichever part of it is read. One that
    several write, each a part of it, goes by the names of the parts; who reads it reads those that
    were written before.
    """
    writers = program.writers()
    parts: dict[str, list[str]] = {}  # base -> the parts of it that were written so far
    found = []
    for op in program.ops:
        reads: list[str] = []
        for name in op.inputs.values():
            base = program.base(name)
            shared = len(writers.get(base, ())) > 1
            reads += parts.get(base, []) if shared else [base]
        writes: list[str] = []
        for name in op.outputs.values():
            base = program.base(name)
            shared = len(writers[base]) > 1
            writes.append(name if shared else base)
            if shared:
                parts.setdefault(base, []).append(name)
        found.append((_operands(program, reads), _operands(program, writes)))
    return found


def _operands(program: Program, names: Iterable[str]) -> tuple[Operand, ...]:
    tensors = (program.tensors[name] for name in dict.fromkeys(names))
    return tuple(Operand(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors)
