"""Recompute instead of keep: meet a budget of memory by computing some activations twice.

What a training step keeps between forward and backward can be dropped after its last use there and
computed again just before it is needed. The second time it comes from the same inputs by the same
operation, so the result is the same to the last bit. What an operation reads must be in memory, so
this is a search (`remat_search`) among what to keep, what to keep a little longer and what to
compute again; it is greedy: next goes what relieves the memory above the budget by most for its
cost."""

from __future__ import annotations

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.lifetimes import ScratchBytes, no_scratch
from edgeadapt.runtime.plan.place import place
from edgeadapt.runtime.plan.remat_search import Search

MIB = 2**20
_ATTEMPTS = 8


def fit(program: Program, budget_bytes: int, scratch_bytes: ScratchBytes = no_scratch) -> Program:
    """The same results in an arena of at most ``budget_bytes``; unchanged if it fits already.

    Raises:
        ConfigError: if no recomputation reaches the budget; says what was reached.
    """
    needed = place(program, scratch_bytes).arena_bytes
    if needed <= budget_bytes:
        return program
    search = Search(program, scratch_bytes)
    target, least = budget_bytes, needed
    for _ in range(_ATTEMPTS):
        reached = search.lower(target)
        result = search.program()
        arena = place(result, scratch_bytes).arena_bytes
        if arena <= budget_bytes:
            return result
        least = min(least, arena)
        if reached:  # gaps between tensors are on top of what the search counts
            target -= max(arena - budget_bytes, budget_bytes // 200)
        else:  # what did not help by itself may, together with what a smaller target needs
            target = int(0.9 * target)
    raise ConfigError(
        f"memory budget: {budget_bytes // MIB} MiB is too little for this image: with everything"
        f" recomputed that can be, it needs {_mib(least)}, and {_mib(needed)} without.",
        "raise the budget, or choose a smaller scope or a smaller image.",
    )


def _mib(nbytes: int) -> str:
    """In MiB, rounded up so that what an error names is enough."""
    return f"{-(-nbytes // MIB)} MiB"
