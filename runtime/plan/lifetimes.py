"""From when to when each piece of the arena is in use, and which results may overwrite an operand.

A piece is the memory of one base tensor, or of several that follow one another in the same place:
a result computed in place, a running sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgeadapt.runtime.plan.ir import Op, Program

ALIGNMENT = 256  # bytes: what GPUs move at once, and more than any vector or cache line
ScratchBytes = Callable[[Op, Program], int]

# Results that may take the place of an operand: each of their elements is written after the last
# reading of the operand's element at the same position, and nothing else of it is read.
_ELEMENTWISE = {
    "conv": ("add0", "add1", "post", "mask"),
    "pointwise": tuple(f"x{i}" for i in range(8)),
}
# Results that must: the kernel adds to what is there.
_SUMS = (("sum_weight", "weight"), ("sum_bias", "bias"))


@dataclass
class Piece:
    """Bytes in use from operation ``begin`` to operation ``end``, both included."""

    names: list[str]  # base tensors, in the order in which they hold the place
    begin: int
    end: int
    nbytes: int  # a multiple of ALIGNMENT


def no_scratch(op: Op, program: Program) -> int:
    """For programs whose kernels need none, or before it is known."""
    return 0


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to a multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """First writing and last use of each base tensor in the arena; outputs are used at the end."""
    found: dict[str, tuple[int, int]] = {}
    tensors = program.tensors
    for position, op in enumerate(program.ops):
        for name in op.inputs.values():
            base = tensors[name].base
            if tensors[base].storage == "arena":
                if base not in found:
                    raise ValueError(f"{op.kind} ({op.origin}) reads {name} before it is written")
                found[base] = found[base][0], position
        for name in op.outputs.values():
            base = tensors[name].base
            if tensors[base].storage == "arena":
                found[base] = found[base][0] if base in found else position, position
    for name in program.outputs:
        base = tensors[name].base
        if base in found:
            found[base] = found[base][0], len(program.ops)
    return found


def pieces(program: Program) -> list[Piece]:
    """The memory that a program needs, results in place where that is safe; by first writing."""
    found: dict[str, Piece] = {}
    every: list[Piece] = []
    spans = lifetimes(program)
    _check_sums(program, spans)
    for base, (begin, end) in sorted(spans.items(), key=lambda item: item[1][0]):
        piece = _predecessor(program, base, spans, found)
        if piece is None:
            piece = Piece([], begin, end, aligned(program.tensors[base].nbytes))
            every.append(piece)
        piece.names.append(base)
        piece.end = end
        found[base] = piece
    return every


def live_bytes(program: Program, scratch_bytes: ScratchBytes = no_scratch) -> list[int]:
    """Bytes in use during each operation; what is kept after the last one comes at the end."""
    changes = [0] * (len(program.ops) + 2)
    for piece in pieces(program):
        changes[piece.begin] += piece.nbytes
        changes[piece.end + 1] -= piece.nbytes
    live, total = [], 0
    for position in range(len(program.ops) + 1):
        total += changes[position]
        here = program.ops[position : position + 1]
        live.append(total + sum(aligned(scratch_bytes(op, program)) for op in here))
    return live


def _predecessor(
    program: Program, base: str, spans: dict[str, tuple[int, int]], found: dict[str, Piece]
) -> Piece | None:
    """The piece whose place ``base`` takes: of an operand that dies where ``base`` begins."""
    op = program.ops[spans[base][0]]
    for operand in _overwritable(program, op, base):
        if operand in spans and spans[operand][1] == spans[base][0]:
            return found[operand]
    return None


def _overwritable(program: Program, op: Op, result: str) -> Iterator[str]:
    """Operands of ``op`` whose place ``result`` may take, as far as this operation goes."""
    for role, written in _SUMS:
        if op.outputs.get(written) == result and role in op.inputs:
            yield op.inputs[role]
            return
    # cuDNN does not promise to read an element before it writes there.
    library = op.attributes.get("algorithm") == "cudnn"
    roles = () if library else _ELEMENTWISE.get(op.kind, ())
    if op.outputs.get("y") != result:
        return
    y = program.tensors[result]
    elsewhere = {program.base(name) for role, name in op.inputs.items() if role not in roles}
    views = {program.base(n) for n in op.inputs.values() if program.tensors[n].view is not None}
    for role in roles:
        name = op.inputs.get(role, "")
        if not name or name in elsewhere or name in views:
            continue
        operand = program.tensors[name]
        same = (operand.shape, operand.strides, operand.dtype) == (y.shape, y.strides, y.dtype)
        if same and operand.storage == "arena":
            yield name


def _check_sums(program: Program, spans: dict[str, tuple[int, int]]) -> None:
    """A running sum is in one place, so nobody may read what it was before."""
    for position, op in enumerate(program.ops):
        for role, written in _SUMS:
            if role not in op.inputs:
                continue
            old = program.tensors[op.inputs[role]]
            new = program.tensors[op.outputs[written]]
            same = (old.storage, old.offset, old.view) == (new.storage, new.offset, new.view)
            if not same or spans.get(old.name, (0, position))[1] != position:
                raise ValueError(f"{op.kind} ({op.origin}): {old.name} must end in {new.name}")
