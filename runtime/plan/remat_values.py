"""What a search for recomputation has to know of each tensor of the arena."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeadapt.runtime.plan.cost import flops, traffic
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.lifetimes import aligned

FLOPS_PER_BYTE = 10  # about what a CPU computes while a byte comes from memory
_NEVER = ("conv_weight_grad", "update_sgd", "update_together")  # they overwrite


@dataclass
class Value:
    """A base tensor in the arena. Slots are positions of operations."""

    nbytes: int
    begin: int  # first writing
    complete: int  # last writing
    uses: list[int] = field(default_factory=list)  # the end of the program, for an output
    reads: list[str] = field(default_factory=list)  # values that its writers read
    cost: float = 0.0  # of computing it again, in floating-point operations
    again: bool = True  # whether it can be computed again,
    until: int = 0  # up to this slot: then a weight that it needs is updated


def values(program: Program) -> dict[str, Value]:
    """Every base tensor in the arena, by name."""
    known: dict[str, Value] = {}
    updated = _updates(program)
    for slot, op in enumerate(program.ops):
        written = list(dict.fromkeys(program.base(name) for name in op.outputs.values()))
        read = list(dict.fromkeys(program.base(name) for name in op.inputs.values()))
        for name in read:
            if name in known:
                known[name].uses.append(slot)
        for name in written:
            tensor = program.tensors[name]
            if tensor.storage != "arena":
                continue
            value = known.setdefault(
                name, Value(aligned(tensor.nbytes), slot, slot, until=len(program.ops))
            )
            value.complete = slot
            value.cost += flops(op, program) + FLOPS_PER_BYTE * traffic(op, program)
            value.again &= len(written) == 1 and op.kind not in _NEVER and name not in read
            for operand in read:
                _read(program, value, operand, updated)
    for name in dict.fromkeys(program.base(n) for n in program.outputs):
        if name in known:
            known[name].uses.append(len(program.ops))
            known[name].again = False
    return known


def _read(program: Program, value: Value, operand: str, updated: dict[int, int]) -> None:
    """Note that computing a value reads ``operand``."""
    tensor = program.tensors[operand]
    if tensor.storage == "arena":
        if operand not in value.reads:
            value.reads.append(operand)
    elif tensor.storage == "weights":
        value.until = min(value.until, updated.get(tensor.offset, value.until))
    elif tensor.storage == "gradients":
        value.again = False


def _updates(program: Program) -> dict[int, int]:
    """Where in the flat weights something is written, and by which operation first."""
    found: dict[int, int] = {}
    for slot, op in enumerate(program.ops):
        for name in op.outputs.values():
            tensor = program.tensors[program.base(name)]
            if tensor.storage == "weights":
                found.setdefault(tensor.offset, slot)
    return found
