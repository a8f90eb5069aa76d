"""Runs and their operations as Chrome trace events, which ui.perfetto.dev opens.

The format: "Trace Event Format", the JSON object form; complete events ("X") and names ("M").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgeadapt.runtime.profile.export import Analyses
from edgeadapt.runtime.profile.timing import Run

_SESSION, _OPERATIONS = 1, 2  # "processes" of the trace
_PHASES = {"in": "image in", "compute": "compute", "out": "image out"}


def trace_document(runs: Sequence[Run], analyses: Analyses) -> dict[str, Any]:
    """Every measured run with its phases, then the median step and restoration in operations."""
    events = [*_names(analyses), *_session(runs), *_operations(runs, analyses)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(analyses: Analyses) -> Iterator[dict[str, Any]]:
    yield _name("process_name", _SESSION, 1, "session: measured runs")
    yield _name("thread_name", _SESSION, 1, "runs")
    yield _name("thread_name", _SESSION, 2, "phases")
    yield _name("process_name", _OPERATIONS, 1, "operations of the median run, profiled apart")
    for thread, (label, found) in enumerate(analyses.items(), 1):
        yield _name("thread_name", _OPERATIONS, thread, f"{label}: {found.profile.graph}")


def _session(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for number, run in enumerate(runs):
        yield _event(f"run {number}", "run", _SESSION, 1, run.begin, run.latency, {})
        for phase in run.phases:
            seconds = phase.end - phase.begin
            name = _PHASES[phase.kind]
            arguments = {"device_ms": 1e3 * phase.seconds} if run.enqueue is not None else {}
            yield _event(name, phase.kind, _SESSION, 2, phase.begin, seconds, arguments)


def _operations(runs: Sequence[Run], analyses: Analyses) -> Iterator[dict[str, Any]]:
    """Behind the runs, one track for each graph."""
    begin = runs[-1].end if runs else 0.0
    for thread, found in enumerate(analyses.values(), 1):
        profile = found.profile
        for part in profile.parts:
            arguments = {
                "group": part.group,
                "flops": part.flops,
                "moved_bytes": part.moved_bytes,
                "precision": part.compute,
            }
            seconds = part.seconds[profile.median]
            at = begin + part.begin
            yield _event(part.name, part.group, _OPERATIONS, thread, at, seconds, arguments)
        begin += profile.whole[profile.median]


def _event(
    name: str, category: str, process: int, thread: int, begin: float, seconds: float, args: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": 1e6 * begin,  # microseconds, as all times of the format
        "dur": 1e6 * seconds,
        "pid": process,
        "tid": thread,
        "args": args,
    }


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
