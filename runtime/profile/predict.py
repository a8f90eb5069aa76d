"""The time of an image on a device that is not there, or here before anything has run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import ConfigError
from edgeadapt.image import padded_size
from edgeadapt.kernels.library import open_library
from edgeadapt.runtime import report
from edgeadapt.runtime.backend import EngineOptions, usable_cores
from edgeadapt.runtime.backends import AUTO
from edgeadapt.runtime.cuda import show
from edgeadapt.runtime.cuda.calls import OWN
from edgeadapt.runtime.cuda.devices import DeviceFigures, find_device
from edgeadapt.runtime.cuda.plan import compile_graph as plan_for_cuda
from edgeadapt.runtime.cuda.roofline import roofline
from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.plan.bind import Kernels
from edgeadapt.runtime.plan.compile import Plan, compile_graph, refuse_precision, target_of
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.profile.caches import cache_bytes, missing_bytes
from edgeadapt.runtime.profile.calibrate import calibrate
from edgeadapt.runtime.profile.operations import operations_of
from edgeadapt.runtime.profile.parts import Peaks
from edgeadapt.runtime.profile.peaks import measure_peaks
from edgeadapt.runtime.profile.roofline import least_seconds
from edgeadapt.runtime.profile.work import work_of

THIS = "this"  # the machine that the program runs on


@dataclass(frozen=True)
class Work:
    """What is to be predicted: an image in, ``steps`` steps of ``scope``, the image out."""

    bundle: Bundle
    size: tuple[int, int]  # height and width of the image, before it is padded
    steps: int
    scope: str
    backend: str
    options: EngineOptions

    @property
    def padded(self) -> tuple[int, int]:
        """What is computed."""
        return padded_size(*self.size, self.bundle.manifest.image.size_multiple)

    def graphs(self) -> Iterator[tuple[str, str, int]]:
        """What runs for an image: a name, a graph, and how often."""
        if self.steps:
            yield "step", self.bundle.scope(self.scope).graph, self.steps
            yield "loss", LOSS_GRAPH, 1
        yield "restore", RESTORE_GRAPH, 1


@dataclass(frozen=True)
class Stage:
    """One program of an image's way."""

    name: str
    times: int  # an image
    operations: int
    flops: int
    moved_bytes: int
    roofline_seconds: float  # the sum over operations of their slower limit
    seconds: float  # predicted
    launches: int | None = None  # of a GPU


@dataclass(frozen=True)
class Prediction:
    """What is to be expected, and what that rests on."""

    device: str
    stages: tuple[Stage, ...]
    memory: str  # what the plan takes of the device's
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all that an image takes; conversions are not in it."""
        return sum(stage.times * stage.seconds for stage in self.stages)


def predict(work: Work, device: str) -> Prediction:
    """Predict the time of an image on a GPU of `devices.json`, or on `THIS` machine's processor.

    Raises:
        ConfigError: if there is no such device, or the memory budget cannot be met.
        BackendError: if the engine has no rule for an operator, or not the precision.
    """
    if device == THIS:
        return _predict_this(work)
    return _predict_gpu(work, find_device(device))


def _predict_gpu(work: Work, device: DeviceFigures) -> Prediction:
    if work.backend not in (AUTO, "cuda"):
        raise ConfigError(
            f"--predict {device.key} is made of the CUDA engine's plan, not of {work.backend}'s.",
            "leave --backend out.",
        )
    precision = work.options.precision
    target = show.cuda_target(precision, work.options.memory_budget)
    optimizer = work.bundle.manifest.adaptation.optimizer
    stages, arena = [], 0
    for name, graph, times in work.graphs():
        updated = work.bundle.scope(work.scope).parameters if name == "step" else ()
        plan = plan_for_cuda(work.bundle, graph, *work.padded, target, updated, optimizer)
        arena = max(arena, plan.placement.arena_bytes)
        launched = show.launches_of(plan.program, OWN)
        launches = launched.of_products + launched.of_others
        line = roofline(plan.program, device, precision, launches)
        count = len(plan.program.ops)
        ends = (line.flops, line.moved_bytes, line.seconds, line.seconds, launches)
        stages.append(Stage(name, times, count, *ends))
    fits = arena <= device.usable_bytes
    memory = (
        f"arena {arena / 2**20:,.0f} MiB of {device.usable_bytes / 2**20:,.0f} MiB usable"
        f"{'' if fits else ': it does NOT fit'}"
    )
    return Prediction(device.name, tuple(stages), memory, tuple(_gpu_assumptions(device, work)))


def _gpu_assumptions(device: DeviceFigures, work: Work) -> Iterator[str]:
    precision = work.options.precision
    rate = f"{'fp16' if precision == 'bf16' else precision}_tflops"
    for name, value in (
        (rate, f"{device.flops_per_second[precision] / 1e12:.4g} TFLOP/s in {precision}"),
        ("fp32_tflops", f"{device.flops_per_second['fp32'] / 1e12:.4g} TFLOP/s for all else"),
        ("bandwidth_gb_s", f"{device.bytes_per_second / 1e9:.4g} GB/s"),
    ):
        origin = device.origins[name]
        yield f"{value} ({origin.standing}: {origin.source})"
    yield "each operation at its slower limit, one after the other: a lower bound"
    yield "every operand crosses to memory once per operation: caches are ignored"
    yield "no time for launches (the steps are one recorded graph), nor for the image's ways"
    yield "this engine has not been measured on this device"


def _predict_this(work: Work) -> Prediction:
    if work.backend not in (AUTO, "native"):
        raise ConfigError(
            f"--predict this is made of the native engine's plan, not of {work.backend}'s.",
            "leave --backend out, or measure: leave --predict out.",
        )
    refuse_precision(work.options.precision)
    library = open_library()
    kernels = Kernels(library, library.levels[-1])
    threads = work.options.threads or usable_cores()
    cache, precision = cache_bytes(System()), work.options.precision
    peaks, rates = measure_peaks(threads), calibrate(precision, threads, cache)
    target = target_of(work.options, kernels, threads)
    in_plan = work.bundle.manifest.adaptation.optimizer == "sgd"

    def plan_of(name: str, graph: str) -> Plan:
        parameters = work.bundle.scope(work.scope).parameters
        sizes = dict.fromkeys(parameters, 1.0) if name == "step" and in_plan else None
        return compile_graph(work.bundle, graph, *work.padded, target, sizes)

    def seconds_of(plan: Plan) -> float:
        missing = missing_bytes(plan.program, plan.placement.offsets, cache)
        return sum(
            rates.time(work_of(op, plan.program, kernels.vectors.lanes, nbytes))
            for op, nbytes in zip(plan.program.ops, missing, strict=True)
        )

    stages, arena = [], 0
    for name, graph, times in work.graphs():
        plan = plan_of(name, graph)
        arena = max(arena, plan.placement.arena_bytes)
        stages.append(_stage(name, times, plan.program, peaks, seconds_of(plan)))
    assumptions = (
        f"measured peaks: {peaks.flops_per_second[precision] / 1e9:,.0f} GFLOP/s in {precision}, "
        f"{peaks.bytes_per_second / 1e9:.1f} GB/s, {threads} threads; the roofline rests on them",
        f"the prediction adds up what each kernel does, by its own algorithm: products, elements "
        f"brought in and written, bytes from memory; each at the rate of its class, fitted just "
        f"now to {rates.operations} operations of no network in particular",
        f"an operand comes from memory if {cache / 2**20:.0f} MiB were touched since: the largest "
        "cache, as if no other program used it",
        "the image's ways in and out are not in it",
        *(() if in_plan else ("the optimizer's step, which numpy takes, is not in it",)),
    )
    memory = f"arena {arena / 2**20:,.0f} MiB"
    return Prediction(f"this machine ({library.levels[-1]})", tuple(stages), memory, assumptions)


def _stage(name: str, times: int, program: Program, peaks: Peaks, seconds: float) -> Stage:
    operations = operations_of(program)
    least = [least_seconds(operation, peaks) or 0.0 for operation in operations]
    flops = sum(operation.flops or 0 for operation in operations)
    moved = sum(operation.moved_bytes or 0 for operation in operations)
    return Stage(name, times, len(operations), flops, moved, sum(least), seconds)


def prediction_document(found: Prediction, measured: float | None) -> dict[str, Any]:
    """For JSON."""
    return {
        "prediction": True,
        "device": found.device,
        "seconds_per_image": found.seconds,
        "measured_seconds_per_image": measured,
        "stages": [asdict(stage) for stage in found.stages],
        "memory": found.memory,
        "assumptions": list(found.assumptions),
    }


def print_prediction(
    work: Work, device: str, as_json: bool, measure: Callable[[], float] | None, out: Console
) -> None:
    """Predict and print; ``measure`` gives the seconds that an image takes to compute here."""
    found = predict(work, device)
    measured = measure() if measure is not None else None
    if as_json:
        report.print_json(prediction_document(found, measured))
        return
    height, width = work.size
    out.print(
        Text(
            f"PREDICTION, not a measurement: {work.bundle.manifest.model.name} on {found.device} "
            f"at {width}x{height}, {work.options.precision}, K = {work.steps}"
        ),
        soft_wrap=True,
    )
    out.print(_table(found))
    out.print(
        Text(
            f"Compute time an image: {1e3 * found.seconds:.4g} ms, "
            f"{1 / found.seconds:.4g} images/s; {found.memory}"
        ),
        soft_wrap=True,
    )
    if measured is not None:
        out.print(
            Text(
                f"Measured here, median: {1e3 * measured:.4g} ms; predicted / measured = "
                f"{found.seconds / measured:.3f}"
            ),
            soft_wrap=True,
        )
    for assumption in found.assumptions:
        out.print(Text(f"- {assumption}"), soft_wrap=True)


def _table(found: Prediction) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = [
        "stage",
        "times",
        "operations",
        "launches",
        "GFLOP",
        "MB",
        "roofline ms",
        "predicted ms",
    ]
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left")
    for stage in found.stages:
        cells = (
            stage.name,
            f"{stage.times}",
            f"{stage.operations}",
            "-" if stage.launches is None else f"{stage.launches}",
            f"{stage.flops / 1e9:.3f}",
            f"{stage.moved_bytes / 1e6:.1f}",
            f"{1e3 * stage.roofline_seconds:.3f}",
            f"{1e3 * stage.seconds:.3f}",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table
