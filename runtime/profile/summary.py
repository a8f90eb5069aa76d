"""The performance summary, in the shape of trtexec's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from edgeadapt.runtime.profile.energy import Energy
from edgeadapt.runtime.profile.statistics import Spread, spread
from edgeadapt.runtime.profile.timing import Measurement, Run

# trtexec's own thresholds (samples/common/sampleReporting.cpp): of the standard deviation over the
# mean, and of the time to enqueue over the time to compute.
UNSTABLE = 0.01
ENQUEUE_BOUND = 0.8


@dataclass(frozen=True)
class Summary:
    """What a measurement comes to; times in seconds."""

    images_per_second: float
    latency: Spread  # image in to image out
    enqueue: Spread | None  # None: the engine computes in the calling thread
    put: Spread  # the image's way in
    compute: Spread
    get: Spread  # the restoration's way out
    walltime: float
    runs: int
    warm_ups: int
    warm_up_seconds: float
    warnings: tuple[str, ...]


def summarise(measured: Measurement, percents: Sequence[float]) -> Summary:
    """Sum up the runs."""
    runs = measured.runs

    def of(kind: Any) -> Spread:
        return spread([run.seconds(kind) for run in runs], percents)

    enqueued = [run.enqueue for run in runs if run.enqueue is not None]
    enqueue = spread(enqueued, percents) if enqueued else None
    put, compute, get = of("in"), of("compute"), of("out")
    return Summary(
        images_per_second=len(runs) / measured.walltime,
        latency=spread([run.latency for run in runs], percents),
        enqueue=enqueue,
        put=put,
        compute=compute,
        get=get,
        walltime=measured.walltime,
        runs=len(runs),
        warm_ups=measured.warm_ups,
        warm_up_seconds=measured.warm_up_seconds,
        warnings=tuple(_warnings(runs, enqueue, put, compute, get)),
    )


def _warnings(
    runs: Sequence[Run], enqueue: Spread | None, put: Spread, compute: Spread, get: Spread
) -> Iterator[str]:
    if enqueue is not None and enqueue.median > ENQUEUE_BOUND * compute.median:
        yield (
            "Throughput may be bound by Enqueue Time rather than by computing: the device waits "
            "for the host."
        )
    ways = {"the image's way in": put, "the restoration's way out": get}
    for way, found in ways.items():
        if found.median >= compute.median:
            yield f"Throughput may be bound by {way} rather than by computing."
    if compute.variation > UNSTABLE:
        yield (
            f"Compute time is unstable: its coefficient of variation is {compute.variation:.1%}. "
            "Lock the clocks and stop other programs, or measure longer (--duration)."
        )
    reasons = [run.taken_back for run in runs if run.taken_back]
    if reasons:
        yield (
            f"{len(reasons)} of {len(runs)} adaptations were taken back ({reasons[0]}): these "
            "images were restored with the bundle's own weights."
        )


def summary_document(found: Summary, energy: Energy | None) -> dict[str, Any]:
    """For JSON; times in milliseconds."""

    def times(one: Spread | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {
            "min": 1e3 * one.minimum,
            "max": 1e3 * one.maximum,
            "mean": 1e3 * one.mean,
            "median": 1e3 * one.median,
            "percentiles": {f"{percent:g}": 1e3 * value for percent, value in one.percentiles},
            "coefficient_of_variation": one.variation,
        }

    return {
        "images_per_second": found.images_per_second,
        "latency_ms": times(found.latency),
        "enqueue_ms": times(found.enqueue),
        "in_ms": times(found.put),
        "compute_ms": times(found.compute),
        "out_ms": times(found.get),
        "total_host_walltime_s": found.walltime,
        "runs": found.runs,
        "warm_ups": found.warm_ups,
        "warm_up_ms": 1e3 * found.warm_up_seconds,
        "energy": None if energy is None else asdict(energy),
        "warnings": list(found.warnings),
    }


def print_summary(
    found: Summary, runs: Sequence[Run], energy: Energy | None, average: int, out: Console
) -> None:
    """Print trtexec's lines; where an engine has no device, what takes their place."""
    device = found.enqueue is not None
    for line in (*_trace_lines(runs, average), "", *_lines(found, device)):
        out.print(Text(line), soft_wrap=True)
    if energy is None:
        out.print(Text("Energy: no power sensor that can be read"), soft_wrap=True)
    else:
        out.print(
            Text(
                f"Energy: {energy.joules_per_image:.4g} J/image, {energy.watts:.3g} W on average "
                f"({energy.sensor}; all that it supplies, idle draw included)"
            ),
            soft_wrap=True,
        )
    for warning in found.warnings:
        out.print(Text(f"* {warning}", style="yellow"), soft_wrap=True)


def _trace_lines(runs: Sequence[Run], average: int) -> Iterator[str]:
    """Averages of so many runs each; what is left over at the end is left out, as by trtexec."""
    if len(runs) < average:
        return
    yield f"=== Trace averages of {average} runs ==="
    for first in range(0, len(runs) - average + 1, average):
        some = runs[first : first + average]
        latency = sum(run.latency for run in some) / average
        compute = sum(run.seconds("compute") for run in some) / average
        yield f"compute {1e3 * compute:.4g} ms, latency {1e3 * latency:.4g} ms"


def _lines(found: Summary, device: bool) -> Iterator[str]:
    yield (
        f"Warm-up: {found.warm_ups} runs over {1e3 * found.warm_up_seconds:.4g} ms; "
        f"measured: {found.runs} runs over {found.walltime:.4g} s"
    )
    yield "=== Performance summary ==="
    yield f"Throughput: {found.images_per_second:.4g} images/s"
    yield f"Latency: {_times(found.latency)}"
    if found.enqueue is not None:
        yield f"Enqueue Time: {_times(found.enqueue)}"
    else:
        yield "Enqueue Time: none, the engine computes in the calling thread"
    yield f"{'H2D Latency' if device else 'Input Conversion (no H2D)'}: {_times(found.put)}"
    yield f"{'GPU Compute Time' if device else 'Compute Time'}: {_times(found.compute)}"
    yield f"{'D2H Latency' if device else 'Output Conversion (no D2H)'}: {_times(found.get)}"
    yield f"Total Host Walltime: {found.walltime:.4g} s"
    yield f"Total Compute Time: {found.compute.mean * found.runs:.4g} s"


def _times(one: Spread) -> str:
    words = [
        f"min = {1e3 * one.minimum:.4g} ms",
        f"max = {1e3 * one.maximum:.4g} ms",
        f"mean = {1e3 * one.mean:.4g} ms",
        f"median = {1e3 * one.median:.4g} ms",
    ]
    words += [f"percentile({p:g}%) = {1e3 * value:.4g} ms" for p, value in one.percentiles]
    return ", ".join(words)
