"""A whole profile: the summary, the operations, the files."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.files import may_write
from edgeadapt.runtime import report
from edgeadapt.runtime.backend import EngineOptions, usable_cores
from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.profile import export, plot
from edgeadapt.runtime.profile.energy import Energy, Sampler, find_sensor
from edgeadapt.runtime.profile.measure import profile_restore, profile_step
from edgeadapt.runtime.profile.parts import Peaks
from edgeadapt.runtime.profile.peaks import measure_peaks
from edgeadapt.runtime.profile.roofline import Analysis, analyse
from edgeadapt.runtime.profile.summary import (
    Summary,
    print_summary,
    summarise,
    summary_document,
)
from edgeadapt.runtime.profile.table import print_analysis
from edgeadapt.runtime.profile.timing import Measurement, Plan, TimedSession, measure
from edgeadapt.runtime.profile.trace import trace_document
from edgeadapt.testing import photo


@dataclass(frozen=True)
class Request:
    """What is to be profiled."""

    bundle: Bundle
    size: tuple[int, int]  # height and width of the image
    steps: int
    scope: str
    backend: str
    options: EngineOptions
    plan: Plan
    percents: tuple[float, ...]
    repetitions: int
    operations: bool  # whether the step and the restoration are taken apart


@dataclass(frozen=True)
class Targets:
    """Files to write."""

    export: Path | None = None
    times: Path | None = None
    trace: Path | None = None
    plot: Path | None = None

    def refuse(self, reason: str) -> None:
        """Raise a `ConfigError` with this reason if a file is asked for."""
        if any((self.export, self.times, self.trace, self.plot)):
            raise ConfigError(reason, "leave the files out.")

    def check(self) -> None:
        """Raise an `EdgeadaptError` for what could not be written, before minutes are measured."""
        for path in filter(None, (self.export, self.times, self.trace, self.plot)):
            if not path.parent.is_dir():
                raise ConfigError(f"{path}: there is no folder {path.parent}.", "make it first.")
            if not may_write(path.parent):
                raise ConfigError(f"{path}: you may not write to {path.parent}.", "name another.")
        if self.plot is not None:
            if self.plot.suffix.lower() != ".png":
                raise ConfigError(f"{self.plot}: --plot must end in .png.", "give it that name.")
            plot.check_installed()

    @property
    def of_operations(self) -> bool:
        """Whether one of them says something of operations alone."""
        return self.export is not None or self.plot is not None


@dataclass(frozen=True)
class Outcome:
    """What was found."""

    backend: str  # that ran
    measured: Measurement
    summary: Summary
    energy: Energy | None
    analyses: dict[str, Analysis]
    note: str  # "" or why there are no operations


def run_profile(
    request: Request, targets: Targets, rows: int | None, average: int, as_json: bool
) -> None:
    """Measure, print, and write the files.

    Raises:
        BackendError, ConfigError, BundleError: if the request cannot be met.
        ConfigError: if a file cannot be written, or there is nothing to write to it.
    """
    targets.check()
    found = take(request)
    if targets.of_operations and not found.analyses:
        reason = found.note.partition(". Hint: ")[0] or "--no-operations was given"
        raise ConfigError(f"there are no operations to export: {reason}.", "leave the files out.")
    if as_json:
        report.print_json(document(request, found))
    else:
        print_outcome(request, found, rows, average, report.console())
    write_files(request, targets, found)


def take(request: Request) -> Outcome:
    """Measure the summary, then the operations, apart from each other."""
    height, width = request.size
    sensor = find_sensor(System())
    with TimedSession(request.bundle, request.backend, request.options) as session:
        backend, profiled = session.backend, session.profiled
        image = photo(0, height, width)
        measure_once = Plan(0.0, 0.0, 1)  # whatever the sensor must not see: plans, first touches
        measure(session, image, request.steps, request.scope, measure_once)
        sampler = Sampler(sensor) if sensor is not None else None
        with sampler if sampler is not None else nullcontext():
            measured = measure(session, image, request.steps, request.scope, request.plan)
        images = len(measured.runs) + measured.warm_ups
        energy = sampler.energy(images) if sampler is not None else None
    analyses: dict[str, Analysis] = {}
    note = ""
    if request.operations and profiled:
        try:
            analyses = take_apart(request, backend)
        except BackendError as error:  # the summary is there all the same
            note = str(error).rstrip(".")
    elif request.operations:
        note = f"the backend {backend} does not take the time of its operations"
    summary = summarise(measured, request.percents)
    return Outcome(backend, measured, summary, energy, analyses, note)


def compute_seconds(request: Request) -> float:
    """The median of what an image takes to compute on the native engine."""
    height, width = request.size
    with TimedSession(request.bundle, "native", request.options) as session:
        image = photo(0, height, width)
        measured = measure(session, image, request.steps, request.scope, request.plan)
    return summarise(measured, ()).compute.median


def take_apart(request: Request, backend: str) -> dict[str, Analysis]:
    """The operations of a step, where there are steps, and of a restoration."""
    height, width = request.size
    peaks = peaks_of(backend, request.options)
    restored = profile_restore(
        request.bundle,
        backend=backend,
        height=height,
        width=width,
        options=request.options,
        repetitions=request.repetitions,
    )
    found = {}
    if request.steps:
        step = profile_step(
            request.bundle,
            backend=backend,
            scope=request.scope,
            height=height,
            width=width,
            options=request.options,
            repetitions=request.repetitions,
        )
        found["step"] = analyse(step, peaks)
    found["restore"] = analyse(restored, peaks)
    return found


def peaks_of(backend: str, options: EngineOptions) -> Peaks | None:
    """This machine's, where the engine computes on its processor."""
    if backend not in ("native", "onnxruntime"):
        return None
    return measure_peaks(options.threads or usable_cores())


def print_outcome(
    request: Request, found: Outcome, rows: int | None, average: int, out: Console
) -> None:
    """Print everything."""
    out.print(Text(_headline(request, found)), soft_wrap=True)
    print_summary(found.summary, found.measured.runs, found.energy, average, out)
    for label, analysis in found.analyses.items():
        out.print()
        many = f", {request.steps} an image" if label == "step" else ", one an image"
        title = f"{label.capitalize()}: {analysis.profile.graph}{many}"
        print_analysis(title, analysis, rows, out)
    if found.note:
        out.print(Text(f"No operations: {found.note}."), soft_wrap=True)


def document(request: Request, found: Outcome) -> dict[str, Any]:
    """Everything for JSON."""
    peaks = next((one.peaks for one in found.analyses.values()), None)
    return {
        "bundle": str(request.bundle.path),
        "height": request.size[0],
        "width": request.size[1],
        "steps": request.steps,
        "scope": request.scope,
        "backend": found.backend,
        "precision": request.options.precision,
        "threads": request.options.threads,
        "summary": summary_document(found.summary, found.energy),
        "peaks": None if peaks is None else _peaks_document(peaks),
        **{name: export.operations_document(one) for name, one in found.analyses.items()},
        "note": found.note,
    }


def write_files(request: Request, targets: Targets, found: Outcome) -> None:
    """Write what was asked for."""
    runs, analyses = found.measured.runs, found.analyses
    if targets.times is not None:
        export.write_json(targets.times, export.times_document(runs))
    if targets.trace is not None:
        export.write_json(targets.trace, trace_document(runs, analyses))
    if targets.export is not None:
        export.write_json(targets.export, export.profile_document(analyses))
        export.write_json(export.layers_path(targets.export), export.layers_document(analyses))
    if targets.plot is not None:
        if any(one.peaks is None for one in analyses.values()):
            raise ConfigError("--plot: the peaks of this device are not known.", "leave it out.")
        plot.write_plot(targets.plot, _headline(request, found), analyses)


def _headline(request: Request, found: Outcome) -> str:
    name = request.bundle.manifest.model.name
    height, width = request.size
    threads = request.options.threads
    words = [f"{name} on {found.backend} at {width}x{height}", request.options.precision]
    words.append(f"K = {request.steps}, scope {request.scope}" if request.steps else "K = 0")
    words += [f"{threads} threads"] if threads else []
    return ", ".join(words)


def _peaks_document(peaks: Peaks) -> dict[str, Any]:
    return {
        "flops_per_second": dict(peaks.flops_per_second),
        "bytes_per_second": peaks.bytes_per_second,
        "threads": peaks.threads,
        "how": peaks.how,
    }
