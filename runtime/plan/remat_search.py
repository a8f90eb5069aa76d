"""The search behind `remat`: which tensors to drop after which use, and to compute again when.

Time is counted in slots, one for each operation of the program; what is computed again runs in the
slot of the operation that needs it, before that. A base tensor and its recomputed copies are
versions of one value: everything in or after the slot where a version begins reads that version.
So where versions begin says everything, and any choice is legal: what a recomputed operation reads
stays in memory until then, or is computed again as well."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.lifetimes import ScratchBytes, live_bytes
from edgeadapt.runtime.plan.remat_build import build
from edgeadapt.runtime.plan.remat_values import Value, values

_DEPTH = 12  # operations in a row that are computed again for one tensor
_TOO_SMALL = 0.0005  # of the budget: not worth a look
_STALE = 0.999  # a candidate whose worth fell by less is still the best

Profile = npt.NDArray[np.int64]
Slots = list[int]


@dataclass
class Schedule:
    """For each value the slots in which versions begin, and those in which it is read."""

    begins: dict[str, Slots]
    uses: dict[str, Slots]  # sorted; a slot as often as operations in it read the value

    def stays(self, name: str) -> Iterator[tuple[int, int]]:
        """First and last slot of each version of a value."""
        begins, uses = self.begins[name], self.uses[name]
        for number, begin in enumerate(begins):
            following = begins[number + 1] if number + 1 < len(begins) else None
            end = len(uses) if following is None else bisect_left(uses, following)
            yield begin, max(begin, uses[end - 1] if end else begin)

    def next_begin(self, name: str, slot: int) -> int | None:
        """Where the first version after ``slot`` begins."""
        begins = self.begins[name]
        position = bisect_right(begins, slot)
        return begins[position] if position < len(begins) else None

    def begin(self, name: str, slot: int) -> int:
        """Where the version that is read in ``slot`` begins."""
        return self.begins[name][bisect_right(self.begins[name], slot) - 1]

    def last_touch(self, name: str, slot: int) -> int:
        """The last slot before ``slot`` that writes or reads a value."""
        uses, begins = self.uses[name], self.begins[name]
        before = bisect_left(uses, slot)
        return max(uses[before - 1] if before else 0, begins[bisect_left(begins, slot) - 1])

    def is_live(self, name: str, slot: int) -> bool:
        """Whether a version of it is in memory in ``slot`` anyway."""
        if slot in self.begins[name]:
            return True
        uses = self.uses[name]
        position = bisect_left(uses, slot)
        following = self.next_begin(name, slot)
        return position < len(uses) and (following is None or uses[position] < following)


@dataclass
class Trial:
    """A change of the schedule, on copies of what it changes."""

    schedule: Schedule
    old: Schedule
    cost: float = 0.0
    touched: set[str] = field(default_factory=set)
    kept: bool = False  # whether something stays in memory that could be computed again

    @classmethod
    def of(cls, schedule: Schedule) -> Trial:
        """No change yet."""
        return cls(Schedule(dict(schedule.begins), dict(schedule.uses)), schedule)

    def change(self, name: str) -> None:
        """Make copies before the first change."""
        if name not in self.touched:
            self.touched.add(name)
            self.schedule.begins[name] = list(self.old.begins[name])
            self.schedule.uses[name] = list(self.old.uses[name])

    def delta(self, known: Mapping[str, Value], slots: int) -> Profile:
        """Bytes in use, by slot, more than before."""
        change = np.zeros(slots + 1, np.int64)
        for name in self.touched:
            for sign, schedule in ((1, self.schedule), (-1, self.old)):
                for begin, end in schedule.stays(name):
                    change[begin] += sign * known[name].nbytes
                    change[end + 1] -= sign * known[name].nbytes
        return np.cumsum(change[:-1])


class Search:
    """Lowers the memory that a program needs, step by step."""

    def __init__(self, program: Program, scratch_bytes: ScratchBytes) -> None:
        self._original = program
        self._values = values(program)
        begins = {name: [value.begin] for name, value in self._values.items()}
        uses = {name: list(value.uses) for name, value in self._values.items()}
        self._schedule = Schedule(begins, uses)
        self._scratch_bytes = scratch_bytes
        self._profile = np.array(live_bytes(program, scratch_bytes), np.int64)

    def program(self) -> Program:
        """With everything that was decided so far.

        From now on the search knows what that needs exactly: results in the place of operands and
        working memory are not in its estimates.
        """
        result, slots = build(self._original, self._schedule.begins)
        live = live_bytes(result, self._scratch_bytes)
        self._profile = np.zeros_like(self._profile)
        np.maximum.at(self._profile, [*slots, len(self._profile) - 1], live)
        return result

    def lower(self, budget: int) -> bool:
        """Drop tensors until no slot needs more than ``budget``; whether that was reached."""
        while self._above(budget) > 0:
            if not self._pass(budget):
                return False
        return True

    def _above(self, budget: int, delta: Profile | int = 0) -> int:
        """Bytes above the budget, summed over slots."""
        return int(np.maximum(self._profile + delta - budget, 0).sum())

    def _pass(self, budget: int) -> bool:
        """Take candidates, best first, as long as they help; whether any did.

        What a candidate is worth falls when others are taken, so it is looked at again when its
        turn comes.
        """
        waiting: list[tuple[float, str, int]] = []
        for name, slot in self._candidates(budget, list(self._values)):
            self._push(waiting, name, slot, budget)
        helped = False
        while waiting and self._above(budget) > 0:
            _, name, slot = heapq.heappop(waiting)
            worth, trial = self._best_trial(name, slot, budget)
            if trial is None:
                continue
            if waiting and worth < -waiting[0][0] * _STALE:
                heapq.heappush(waiting, (-worth, name, slot))
                continue
            self._take(trial)
            helped = True
            for other, where in self._candidates(budget, sorted(trial.touched)):
                self._push(waiting, other, where, budget)
        return helped

    def _push(
        self, waiting: list[tuple[float, str, int]], name: str, slot: int, budget: int
    ) -> None:
        worth, trial = self._best_trial(name, slot, budget)
        if trial is not None:
            heapq.heappush(waiting, (-worth, name, slot))

    def _candidates(self, budget: int, names: list[str]) -> Iterator[tuple[str, int]]:
        """Values that lie idle in a slot above the budget, and when they are needed next."""
        full = np.concatenate(([0], np.cumsum(self._profile > budget)))
        for name in names:
            value = self._values[name]
            if not value.again or value.nbytes < budget * _TOO_SMALL:
                continue
            begins = self._schedule.begins[name]
            touched = sorted({*self._schedule.uses[name], *begins, self._values[name].complete})
            for before, after in pairwise(touched):
                idle = full[after] - full[before + 1] if after > before + 1 else 0
                if idle and after not in begins and before >= self._values[name].complete:
                    yield name, after

    def _best_trial(self, name: str, slot: int, budget: int) -> tuple[float, Trial | None]:
        """How much less is above the budget, for what it costs; None if it does not help."""
        best: tuple[float, Trial | None] = (0.0, None)
        idle = slot in self._schedule.uses[name] and slot not in self._schedule.begins[name]
        if not idle or not self._may_begin(name, slot):
            return best
        above = self._above(budget)
        for keep in (True, False):
            trial = Trial.of(self._schedule)
            self._begin(trial, name, slot, keep, budget)
            delta = trial.delta(self._values, len(self._profile))
            gain = above - self._above(budget, delta)
            worth = gain / max(trial.cost, 1.0)
            if gain > 0 and worth > best[0]:
                best = worth, trial
            if not trial.kept:
                break
        return best

    def _begin(
        self, trial: Trial, name: str, slot: int, keep: bool, budget: int, depth: int = _DEPTH
    ) -> None:
        """Let a version of ``name`` begin in ``slot``, and so for what it reads, unless that is in
        memory or can stay there: with ``keep`` always, otherwise if it costs nothing.
        """
        value, schedule = self._values[name], trial.schedule
        trial.change(name)
        later = schedule.next_begin(name, slot)
        insort(schedule.begins[name], slot)
        trial.cost += value.cost
        for operand in value.reads:
            live = schedule.is_live(operand, slot)
            idle = schedule.last_touch(operand, slot)
            trial.change(operand)
            insort(schedule.uses[operand], slot)
            if live or depth == 0 or not self._may_begin(operand, slot):
                continue
            if self._fits(operand, idle, slot, budget):
                continue
            if keep:
                trial.kept = True
            else:
                self._begin(trial, operand, slot, keep, budget, depth - 1)
        if later is not None:  # it was computed again before, only later
            self._end(trial, name, later)

    def _may_begin(self, name: str, slot: int) -> bool:
        return self._values[name].again and slot <= self._values[name].until

    def _end(self, trial: Trial, name: str, slot: int) -> None:
        """Let no version of ``name`` begin in ``slot``, nor of what only that one reads."""
        schedule = trial.schedule
        trial.change(name)
        schedule.begins[name].remove(slot)
        trial.cost -= self._values[name].cost
        for operand in self._values[name].reads:
            trial.change(operand)
            schedule.uses[operand].remove(slot)
            begin = schedule.begin(operand, slot)
            following = schedule.next_begin(operand, slot)
            uses = schedule.uses[operand]
            first = bisect_left(uses, begin)
            unread = first == len(uses) or (following is not None and uses[first] >= following)
            if unread and begin != schedule.begins[operand][0]:
                self._end(trial, operand, begin)

    def _fits(self, name: str, begin: int, end: int, budget: int) -> bool:
        """Whether a value can stay in memory between two slots without going above the budget."""
        among = self._profile[begin + 1 : end + 1]
        return bool((among + self._values[name].nbytes <= budget).all())

    def _take(self, trial: Trial) -> None:
        self._profile = self._profile + trial.delta(self._values, len(self._profile))
        for name in trial.touched:
            self._schedule.begins[name] = trial.schedule.begins[name]
            self._schedule.uses[name] = trial.schedule.uses[name]
