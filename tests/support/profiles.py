"""Profiles and runs made by hand, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeadapt.runtime.profile.parts import Part, Peaks, Profile, median_index
from edgeadapt.runtime.profile.timing import Measurement, Phase, Run

PEAKS = Peaks({"fp32": 100e9, "bf16": 200e9}, 10e9, 2, "made up")


def part(name: str, seconds: Sequence[float], **changes: Any) -> Part:
    """A convolution of the forward pass, unless it says otherwise."""
    fields: dict[str, Any] = {
        "kind": "conv",
        "group": "forward",
        "flops": 1_000_000,
        "moved_bytes": 100_000,
        "compute": "fp32",
    }
    return Part(name=name, **{**fields, **changes}, seconds=tuple(seconds))


def profile(
    parts: Sequence[Part], whole: Sequence[float], plain: Sequence[float] = (0.5,)
) -> Profile:
    """Of a restoration of 6 x 8 pixels."""
    graph, begin, listed = "restore.onnx", 0.0, []
    median = median_index(tuple(whole))
    for one in parts:
        listed.append(Part(**{**vars(one), "begin": begin}))
        begin += one.seconds[median]
    return Profile("native", graph, 6, 8, "fp32", 2, tuple(listed), tuple(whole), tuple(plain))


def run(
    begin: float, put: float, compute: float, get: float, enqueue: float | None = None, **more: Any
) -> Run:
    """Phases one behind the other, a tenth of the first way in between two of them."""
    pause = put / 10
    ends = [begin]
    phases = []
    for kind, seconds in (("in", put), ("compute", compute), ("out", get)):
        phases.append(Phase(kind, ends[-1], ends[-1] + seconds, seconds))
        ends.append(ends[-1] + seconds + pause)
    return Run(begin, ends[-1] - pause, tuple(phases), enqueue, more.get("taken_back", ""))


def measurement(runs: Sequence[Run]) -> Measurement:
    """After a warm-up of three runs."""
    return Measurement(3, 0.25, tuple(runs), 0.0)
