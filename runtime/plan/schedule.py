"""The order in which operations run: the one of several in which least memory is in use at once.

Finding the best order is hard (it is a pebbling game), and the graphs are nearly chains: what there
is to win lies in computing weight gradients as soon as they can be, so that activations die, and
in not enlarging anything before it is needed. So a few orders are tried and the best is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from edgeadapt.runtime.plan.ir import Op, Program, Tensor
from edgeadapt.runtime.plan.lifetimes import live_bytes
from edgeadapt.runtime.plan.shapes import reach

Order = list[int]


def schedule(program: Program) -> Program:
    """The same operations in an order in which less of the arena is in use at the fullest moment.

    What is written in parts or added up in place keeps its order, so results stay the same to the
    last bit. Of orders that need the same memory the first one tried is taken, the given one first.
    """
    needs = _needs(program)
    given = list(range(len(needs)))
    best, least = program, peak_bytes(program)
    for wanted in (given, _depth_first(needs)):
        order = _eager(_Memory.of(program), needs, wanted)
        other = replace(program, ops=tuple(program.ops[position] for position in order))
        peak = peak_bytes(other)
        if peak < least:
            best, least = other, peak
    return best


def peak_bytes(program: Program) -> int:
    """Bytes of the arena in use at the fullest moment: no placement can do with less."""
    return max(live_bytes(program), default=0)


@dataclass
class _Memory:
    """What running each operation next would add to the memory in use, kept up to date."""

    sizes: dict[str, int]  # base tensors of the arena -> bytes
    uses: list[list[str]]  # of each operation: base tensors of the arena that it touches
    users: dict[str, set[int]]  # operations that still have to touch a base tensor
    begun: set[str]  # base tensors in use
    growth: list[int]  # bytes in use after an operation, less those before it

    @classmethod
    def of(cls, program: Program) -> _Memory:
        """Before the first operation."""
        kept = {program.base(name) for name in program.outputs}
        uses = [list(dict.fromkeys(_arena(program, op))) for op in program.ops]
        sizes = {base: program.tensors[base].nbytes for bases in uses for base in bases}
        users: dict[str, set[int]] = {base: set() for base in sizes}
        for position, bases in enumerate(uses):
            for base in bases:
                users[base].add(position)
        for base in kept & sizes.keys():
            users[base].add(-1)  # whoever reads it afterwards
        growth = [0] * len(uses)
        memory = cls(sizes, uses, users, set(), growth)
        for base, positions in users.items():
            for position in positions - {-1}:
                growth[position] += sizes[base]
            memory._ends(base)
        return memory

    def run(self, position: int) -> set[int]:
        """Note that an operation has run; returns those whose growth is another now."""
        changed: set[int] = set()
        for base in self.uses[position]:
            self.users[base].discard(position)
            if base not in self.begun:
                self.begun.add(base)
                for other in self.users[base] - {-1}:
                    self.growth[other] -= self.sizes[base]
                    changed.add(other)
            changed |= self._ends(base)
        return changed

    def _ends(self, base: str) -> set[int]:
        """If one operation is left that touches ``base``, that one frees it."""
        if len(self.users[base]) != 1 or -1 in self.users[base]:
            return set()
        (last,) = self.users[base]
        self.growth[last] -= self.sizes[base]
        return {last}


def _eager(memory: _Memory, needs: list[set[int]], wanted: Order) -> Order:
    """The order ``wanted``, but what frees more memory than it takes runs at once, and before the
    rest what frees as much."""
    turn = {position: number for number, position in enumerate(wanted)}
    waiting = [set(before) for before in needs]
    followers = _followers(needs)
    order: Order = []
    done: set[int] = set()

    def rank(position: int) -> tuple[int, int, int]:
        growth = memory.growth[position]
        return (growth > 0) - (growth < 0), turn[position], position

    ready = [rank(position) for position, before in enumerate(needs) if not before]
    heapq.heapify(ready)
    while ready:
        *_, position = heapq.heappop(ready)
        if position in done:  # its growth fell, and it ran with the lower rank
            continue
        order.append(position)
        done.add(position)
        changed = memory.run(position)
        for follower in followers[position]:
            waiting[follower].discard(position)
            if not waiting[follower]:
                changed.add(follower)
        for other in changed:
            if not waiting[other] and other not in done:
                heapq.heappush(ready, rank(other))
    return order


def _depth_first(needs: list[set[int]]) -> Order:
    """Each result just before it is needed; of several, the one given first."""
    order: Order = []
    done: set[int] = set()
    wanted = set().union(*needs) if needs else set()
    stack = [position for position in reversed(range(len(needs))) if position not in wanted]
    while stack:
        position = stack[-1]
        missing = [before for before in needs[position] if before not in done]
        if position in done or not missing:
            stack.pop()
            if position not in done:
                order.append(position)
                done.add(position)
        else:
            stack.extend(sorted(missing, reverse=True))
    return order


def _followers(needs: list[set[int]]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in needs]
    for position, before in enumerate(needs):
        for other in before:
            found[other].append(position)
    return found


def _arena(program: Program, op: Op) -> Iterator[str]:
    for name in (*op.inputs.values(), *op.outputs.values()):
        base = program.base(name)
        if program.tensors[base].storage == "arena":
            yield base


def _needs(program: Program) -> list[set[int]]:
    """For each operation those that must run before it: of two that touch the same elements and
    of which one writes, the one that is first now."""
    needs: list[set[int]] = [set() for _ in program.ops]
    touched: dict[Hashable, list[tuple[int, int, int, bool]]] = {}
    for position, op in enumerate(program.ops):
        operands = [(name, False) for name in op.inputs.values()]
        results = [(name, True) for name in op.outputs.values()]
        for name, writes in (*operands, *results):
            place, first, last = _reach(program, program.tensors[name])
            history = touched.setdefault(place, [])
            for other, begin, end, wrote in history:
                if (wrote or writes) and begin <= last and first <= end and other != position:
                    needs[position].add(other)
            history.append((position, first, last, writes))
    return needs


def _reach(program: Program, tensor: Tensor) -> tuple[Hashable, int, int]:
    """Where a tensor lies: the piece of memory, its first and its last element in it."""
    base = program.tensors[tensor.base]
    flat = base.storage in ("weights", "gradients")
    place = (base.storage, base.offset) if flat else base.name
    first, last = reach(tensor.view.offset if tensor.view else 0, tensor.shape, tensor.strides)
    return place, first, last
