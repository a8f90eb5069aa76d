"""What the parts of a profile reach of what the machine can do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeadapt.runtime.profile.parts import (
    GROUPS,
    Operation,
    Part,
    Peaks,
    Profile,
    median_index,
)


@dataclass(frozen=True)
class Row:
    """A part, or several together; seconds are those of the median run."""

    name: str
    parts: int
    seconds: float
    share: float  # of the whole
    flops: int | None  # of those parts of which it is known; None: of none
    moved_bytes: int | None
    # The least time by the measured peaks: for each part the longer of what its arithmetic and its
    # traffic take. None: not all of it is known.
    least_seconds: float | None

    @property
    def flops_per_second(self) -> float:
        """What was reached."""
        return (self.flops or 0) / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """What was reached."""
        return (self.moved_bytes or 0) / self.seconds if self.seconds else 0.0

    @property
    def roofline(self) -> float | None:
        """The least time over the time: 1 is at the roofline."""
        if self.least_seconds is None or not self.seconds:
            return None
        return self.least_seconds / self.seconds


@dataclass(frozen=True)
class Analysis:
    """A profile against the machine."""

    profile: Profile
    peaks: Peaks | None
    rows: tuple[Row, ...]  # of each part, the longest first
    groups: tuple[Row, ...]  # those that there are, in the order of `GROUPS`
    total: Row  # all parts
    whole: float  # seconds of the median run with profiling
    plain: float  # without

    @property
    def remainder(self) -> float:
        """Seconds of the median run that no part explains."""
        return self.whole - self.total.seconds


def analyse(profile: Profile, peaks: Peaks | None) -> Analysis:
    """Hold the parts of a profile to the peaks; without peaks there is no roofline."""
    whole = profile.whole[profile.median]
    rows = [_row(part.name, [part], profile, peaks) for part in profile.parts]
    rows.sort(key=lambda row: -row.seconds)
    by_group = {group: [part for part in profile.parts if part.group == group] for group in GROUPS}
    return Analysis(
        profile,
        peaks,
        tuple(rows),
        tuple(_row(g, parts, profile, peaks) for g, parts in by_group.items() if parts),
        _row("all parts", profile.parts, profile, peaks),
        whole,
        profile.plain[median_index(profile.plain)],
    )


def least_seconds(part: Operation, peaks: Peaks) -> float | None:
    """The longer of arithmetic at the peak of its precision and traffic at the peak."""
    rate = peaks.flops_per_second.get(part.compute)
    if part.flops is None or part.moved_bytes is None or rate is None:
        return None
    return max(part.flops / rate, part.moved_bytes / peaks.bytes_per_second)


def _row(name: str, parts: Sequence[Part], profile: Profile, peaks: Peaks | None) -> Row:
    median_run = profile.median
    seconds = sum(part.seconds[median_run] for part in parts)
    least = [None if peaks is None else least_seconds(part, peaks) for part in parts]
    known = [found for found in least if found is not None]
    return Row(
        name,
        len(parts),
        seconds,
        seconds / profile.whole[median_run],
        _sum(part.flops for part in parts),
        _sum(part.moved_bytes for part in parts),
        sum(known) if len(known) == len(parts) else None,
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
