"""Where in the arena each tensor lies: offsets from lifetimes.

Each piece is put at the lowest place, or the tightest gap, that nothing alive at the same time
occupies. Which order is best depends on the program, so several are tried; in practice one of them
comes within a few percent of what the fullest moment needs, and nothing can do with less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.lifetimes import (
    Piece,
    ScratchBytes,
    aligned,
    live_bytes,
    no_scratch,
    pieces,
)

_CLOSE = 1.002  # times the bound: the search for a better order ends
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """The memory plan of one program."""

    offsets: Mapping[str, int]  # base tensor in the arena -> bytes from its beginning
    scratch: tuple[int, ...]  # the same for each operation's scratch memory; 0 if it has none
    arena_bytes: int
    lower_bound_bytes: int  # what is in use at the fullest moment


def place(program: Program, scratch_bytes: ScratchBytes = no_scratch) -> Placement:
    """Offsets for every base tensor in the arena and for the scratch of every operation."""
    tensors = pieces(program)
    scratch = [
        Piece([], position, position, aligned(scratch_bytes(op, program)))
        for position, op in enumerate(program.ops)
    ]
    needed = [piece for piece in (*tensors, *scratch) if piece.nbytes]
    bound = max(live_bytes(program, scratch_bytes), default=0)
    places = _best(needed, bound)
    at = {id(piece): int(begin) for piece, begin in zip(needed, places, strict=True)}
    return Placement(
        {name: at.get(id(piece), 0) for piece in tensors for name in piece.names},
        tuple(at.get(id(piece), 0) for piece in scratch),
        max((at[id(piece)] + piece.nbytes for piece in needed), default=0),
        bound,
    )


def _best(needed: Sequence[Piece], bound: int) -> Ints:
    """The best of several orders; the first that is close to the bound ends the search."""
    sizes = np.array([piece.nbytes for piece in needed], np.int64)
    begins = np.array([piece.begin for piece in needed], np.int64)
    ends = np.array([piece.end for piece in needed], np.int64)
    best, least = np.zeros(len(needed), np.int64), np.iinfo(np.int64).max
    for key in _ORDERS:
        order = np.lexsort(key(sizes, begins, ends))
        places = _assign(order, sizes, begins, ends)
        top = int((places + sizes).max(initial=0))
        if top < least:
            best, least = places, top
        if least <= bound * _CLOSE:
            break
    return best


# Keys for lexsort, which takes the last one first; begins and ends settle what is equal.
_ORDERS: tuple[Callable[[Ints, Ints, Ints], tuple[Ints, ...]], ...] = (
    lambda sizes, begins, ends: (ends, begins, -sizes),
    lambda sizes, begins, ends: (begins, -sizes, begins - ends),
    lambda sizes, begins, ends: (begins, ends, -sizes * (ends - begins + 1)),
    lambda sizes, begins, ends: (ends, -sizes, begins),
)


def _assign(order: Ints, sizes: Ints, begins: Ints, ends: Ints) -> Ints:
    """Place the pieces one after the other, each in the tightest gap that it fits."""
    places = np.zeros(len(order), np.int64)
    done = np.zeros(len(order), bool)
    for index in order:
        beside = done & (begins <= ends[index]) & (ends >= begins[index])
        places[index] = _tightest(places[beside], sizes[beside], int(sizes[index]))
        done[index] = True
    return places


def _tightest(places: Ints, sizes: Ints, size: int) -> int:
    """The beginning of the smallest gap of at least ``size`` bytes; above everything if none."""
    if len(places) == 0:
        return 0
    order = np.argsort(places, kind="stable")
    ends = np.maximum.accumulate(places[order] + sizes[order])
    gaps = places[order] - np.concatenate(([0], ends[:-1]))
    fits = np.flatnonzero(gaps >= size)
    if len(fits) == 0:
        return int(ends[-1])
    chosen = fits[np.argmin(gaps[fits])]
    return int(ends[chosen - 1]) if chosen else 0
