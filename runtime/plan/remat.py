"""Recompute instead of keep: meet a budget of memory by computing some activations twice.

What a training step keeps between forward and backward can be dropped after its last use there and
computed again just before it is needed. The second time it comes from the same inputs by the same
operation, so the result is the same to the last bit. What an operation reads must be in memory, so
this is a search (`remat_search`) among what to keep, what to keep a little longer and what to
compute again; it is greedy: next goes what relieves the memory above the budget by most for its
cost."""

from __future__ import annotations

from collections.abc import Hashable

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.lifetimes import ScratchBytes, no_scratch
from edgeadapt.runtime.plan.place import place
from edgeadapt.runtime.plan.remat_search import Search

MIB = 2**20
_ROUNDS = 6  # of lowering the target for one search
_HALVINGS = 5  # of the interval between what is too little and what was reached


def fit(program: Program, budget_bytes: int, scratch_bytes: ScratchBytes = no_scratch) -> Program:
    """The same results in an arena of at most ``budget_bytes``; unchanged if it fits already.

    Raises:
        ConfigError: if no recomputation reaches the budget; says what was reached.
    """
    attempts = _Attempts(program, _remembered(scratch_bytes))
    needed = attempts.least
    if needed > budget_bytes:
        _descend(attempts, budget_bytes)
    if attempts.least > budget_bytes:
        _approach(attempts, budget_bytes)
    if attempts.least > budget_bytes:
        raise ConfigError(
            f"memory budget: {budget_bytes / MIB:.4g} MiB is too little for this image: with"
            f" recomputation it needs {_mib(attempts.least)}, and {_mib(needed)} without.",
            "raise the budget, or choose a smaller scope or a smaller image.",
        )
    return attempts.best


class _Attempts:
    """The program that takes the least memory of those that were tried."""

    def __init__(self, program: Program, scratch_bytes: ScratchBytes) -> None:
        self.original, self.best = program, program
        self._scratch_bytes = scratch_bytes
        self.least = place(program, scratch_bytes).arena_bytes
        self.floor = _largest_step(program, scratch_bytes)

    def search(self) -> Search:
        """A new one, in which nothing is decided yet."""
        return Search(self.original, self._scratch_bytes)

    def try_out(self, search: Search) -> int:
        """Bytes of the arena of the program that a search has come to."""
        program = search.program()
        arena = place(program, self._scratch_bytes).arena_bytes
        if arena < self.least:
            self.best, self.least = program, arena
        return arena


def _descend(attempts: _Attempts, budget: int) -> None:
    """Search for the budget, then for less, until the arena keeps to it."""
    search, target = attempts.search(), max(budget, attempts.floor)
    for _ in range(_ROUNDS):
        reached = search.lower(target)
        arena = attempts.try_out(search)
        if arena <= budget:
            return
        if reached:  # gaps between tensors are on top of what the search counts
            target -= max(arena - budget, budget // 200)
        else:  # what did not help by itself may, together with what a smaller target needs
            target = int(0.9 * target)


def _approach(attempts: _Attempts, budget: int) -> None:
    """Look for the least that can be reached; a search that aims at too little errs."""
    low = max(budget, attempts.floor)
    for _ in range(_HALVINGS):
        target = (low + attempts.least) // 2
        search = attempts.search()
        search.lower(target)
        if attempts.try_out(search) > target:
            low = target
        if attempts.least <= budget:
            return


def _remembered(scratch_bytes: ScratchBytes) -> ScratchBytes:
    """Asks the kernels once; an operation that runs again has the same attributes and sizes."""
    known: dict[Hashable, int] = {}

    def ask(op: Op, program: Program) -> int:
        tensors = (program.tensors[n] for n in (*op.inputs.values(), *op.outputs.values()))
        key = (op.kind, id(op.attributes), *(t.shape for t in tensors))
        if key not in known:
            known[key] = scratch_bytes(op, program)
        return known[key]

    return ask


def _largest_step(program: Program, scratch_bytes: ScratchBytes) -> int:
    """Bytes that the most demanding operation needs for itself: nothing can do with less."""
    return max(
        scratch_bytes(op, program)
        + sum(
            program.tensors[name].nbytes
            for name in {program.base(n) for n in op.inputs.values()}
            if program.tensors[name].storage == "arena"
        )
        for op in program.ops
    )


def _mib(nbytes: int) -> str:
    """In MiB, rounded up so that what an error names is enough."""
    return f"{-(-nbytes // MIB)} MiB"
