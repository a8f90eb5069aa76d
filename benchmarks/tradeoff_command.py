"""`edgeadapt bench tradeoff`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from edgeadapt.benchmarks import plots
from edgeadapt.benchmarks.machine import describe
from edgeadapt.benchmarks.memory import session_peak_mib
from edgeadapt.benchmarks.options import layout_options, progress
from edgeadapt.benchmarks.quality import Model, bundle_digest, make_models
from edgeadapt.benchmarks.row_file import RowFile
from edgeadapt.benchmarks.samples import Sample, find_samples
from edgeadapt.benchmarks.tradeoff import (
    Engine,
    Machine,
    Point,
    Setup,
    Timing,
    best_points,
    check_engines,
    make_point,
    make_setups,
    time_in_turn,
)
from edgeadapt.benchmarks.tradeoff_plot import write_plot
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import PRECISIONS, EngineOptions, Precision, usable_cores
from edgeadapt.runtime.backends import AUTOMATIC, BACKENDS, open_backend
from edgeadapt.runtime.options import ImageSize, threads_option
from edgeadapt.runtime.quality import check_installed
from edgeadapt.runtime.report import console, print_table

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--data", required=True, type=_PATH, help="Folder of recordings, pairs or photos.")
@layout_options
@click.option(
    "--limit", type=click.IntRange(1), default=2, show_default=True, help="Images of a recording."
)
@click.option(
    "--size",
    type=ImageSize(),
    default="640x360",
    show_default=True,
    metavar="WIDTHxHEIGHT",
    help="Of the part from the middle of each image.",
)
@click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(0),
    default=[0, 1, 3, 5],
    show_default=True,
    help="K; once for each.",
)
@click.option("--scope", "scopes", multiple=True, help="Which parameters change.  [each there is]")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS))
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(list(BACKENDS)),
    help=f"Once for each.  [{', '.join(AUTOMATIC)}]",
)
@click.option("--repeats", type=click.IntRange(1), default=2, show_default=True, metavar="N")
@threads_option("CPU threads.  [every core]")
@click.option("--memory/--no-memory", default=True, help="Peak memory, each in its own process.")
@click.option("--plot/--no-plot", default=True, help="OUT/tradeoff.png.")
@click.option("-o", "--out", type=_PATH, required=True, help="Folder; goes on where it ended.")
def tradeoff(
    bundles: Sequence[str],
    data: Path,
    layout: str,
    blur: str,
    sharp: str,
    limit: int,
    size: tuple[int, int],
    steps: Sequence[int],
    scopes: Sequence[str],
    precisions: Sequence[Precision],
    backends: Sequence[str],
    repeats: int,
    threads: int | None,
    memory: bool,
    plot: bool,
    out: Path,
) -> None:
    """What adaptation buys and costs: dB and SSIM against milliseconds and memory.

    Every K, scope, precision and backend, on the same images, in turn. OUT/timings.csv has a line
    for each image restored, OUT/tradeoff.csv one for each way to restore them.
    """
    check_installed()
    if plot:
        plots.check_installed()
    timings, points = RowFile(out / "timings.csv", Timing), RowFile(out / "tradeoff.csv", Point)
    models = make_models([open_bundle(bundle) for bundle in bundles], [])
    samples = find_samples(data, layout, blur, sharp, limit)
    engines = _engines(models, backends or AUTOMATIC, precisions or PRECISIONS)
    cores = threads or usable_cores()
    setups = _setups(models, engines, scopes, steps, size, cores)
    task = _Task(setups, {bundle_digest(m.bundle): m.bundle for m in models}, samples, repeats)
    _tidy(timings, points)
    task.time(timings, points, memory)
    _print(task.found(points))
    if plot:
        write_plot(out / "tradeoff.png", task.found(points))


class _Task:
    """All that one call measures."""

    def __init__(
        self,
        setups: Sequence[Setup],
        bundles: Mapping[str, Bundle],
        samples: Sequence[Sample],
        rounds: int,
    ) -> None:
        self._setups, self._bundles = setups, bundles
        self._samples, self._rounds = samples, rounds
        self._files = {(s.recording, s.name, s.digest()) for s in samples}
        self._data = hashlib.sha256(repr(sorted(self._files)).encode()).hexdigest()[:16]

    def found(self, points: RowFile[Point]) -> list[Point]:
        """What there is of it, in its order."""
        known = {_identity(point): point for point in points.rows}
        keys = ((setup, self._data, self._rounds) for setup in self._setups)
        return [known[key] for key in keys if key in known]

    def time(self, timings: RowFile[Timing], points: RowFile[Point], memory: bool) -> None:
        """Add the points that are not there, each as soon as it is whole."""
        there = {p.setup for p in self.found(points) if p.peak_mib is not None or not memory}
        missing = [setup for setup in self._setups if setup not in there]
        wanted = self._rounds * len(self._samples)
        untimed = [s for s in missing if len(self._of(s, timings.rows)) < wanted]
        for digest, bundle in self._bundles.items():
            checked = [setup for setup in untimed if setup.weights == digest]
            if checked:
                check_engines(bundle, checked)
        total = sum(wanted - len(self._of(setup, timings.rows)) for setup in untimed)
        with progress("timing", total, lines=True) as advance:
            time_in_turn(untimed, self._bundles, self._samples, self._rounds, timings, advance)
        machine = _machine()
        with progress("measuring memory", len(missing) * memory, lines=True) as advance:
            for setup in missing:
                path = self._bundles[setup.weights].path
                peak = round(session_peak_mib(setup, path), 1) if memory else None
                own = self._of(setup, timings.rows)
                points.add([make_point(setup, own, self._data, self._rounds, peak, machine)])
                if memory:
                    advance()

    def _of(self, setup: Setup, rows: Iterable[Timing]) -> list[Timing]:
        return [
            row
            for row in rows
            if row.setup == setup
            and row.round < self._rounds
            and (row.recording, row.image, row.files) in self._files
        ]


def _engines(
    models: Sequence[Model], backends: Sequence[str], precisions: Sequence[Precision]
) -> list[Engine]:
    """Those that can run every bundle."""
    found, failures = [], []
    for engine in [Engine(b, p) for b in BACKENDS if b in backends for p in precisions]:
        try:
            for model in models:
                weights = model.bundle.weights()
                options = EngineOptions(precision=engine.precision)
                open_backend(engine.backend, model.bundle, weights, weights.copy(), options)
            found.append(engine)
        except BackendError as error:
            failures.append(f"{engine.name}: {error}")
    if not found:
        raise BackendError(f"nothing can be measured: {' | '.join(failures)}")
    for failure in failures:  # may quote the bundle: no markup
        console(stderr=True).print(f"Not measured: {failure}", markup=False)
    return found


def _setups(
    models: Sequence[Model],
    engines: Sequence[Engine],
    scopes: Sequence[str],
    steps: Sequence[int],
    size: tuple[int, int],
    threads: int,
) -> list[Setup]:
    result = []
    cpu = describe()["cpu"]
    for model in models:
        own = [scope.name for scope in model.bundle.manifest.scopes]
        names = [model.bundle.scope(name).name for name in scopes] or own
        digest = bundle_digest(model.bundle)
        common = Setup(model.name, digest, "", "fp32", "", 0, *size, threads, cpu)
        result += make_setups(common, list(dict.fromkeys(names)), steps, engines)
    return result


def _machine() -> Machine:
    described = describe()
    described.pop("cpu")
    return Machine(**described)


def _identity(point: Point) -> tuple[Setup, str, int]:
    return point.setup, point.data, point.rounds


def _tidy(timings: RowFile[Timing], points: RowFile[Point]) -> None:
    """Drop a line that was left half written, and rows that later ones replace."""
    timings.rewrite(timings.rows)
    points.rewrite(list({_identity(point): point for point in points.rows}.values()))
    commit = describe()["commit"]
    others = {row.commit for row in timings.rows} | {row.machine.commit for row in points.rows}
    if others - {commit}:
        console(stderr=True).print(
            "Some rows are of another commit and are kept; another -o measures them again.",
            markup=False,
        )


def _print(points: Sequence[Point]) -> None:
    front = best_points(points)
    print_table(
        ["bundle", "K", "scope", "engine", "ms", "peak MiB", "PSNR", "SSIM", "reverted", "front"],
        [
            [
                point.setup.bundle,
                f"{point.setup.steps}",
                point.setup.scope,
                f"{point.setup.backend} {point.setup.precision}",
                f"{point.milliseconds:.1f}",
                "-" if point.peak_mib is None else f"{point.peak_mib:.0f}",
                f"{point.psnr:.3f}",
                f"{point.ssim:.4f}",
                f"{point.reverted}",
                "*" if place in front else "",
            ]
            for place, point in enumerate(points)
        ],
    )
    one = points[0]
    console().print(
        f"Adaptation and restoration of an image of {one.setup.width}x{one.setup.height}, median "
        f"of {one.rounds} x {one.images}; PSNR in dB, RGB. {one.setup.threads} threads, "
        f"{one.setup.cpu}. front: nothing here is faster and, by 0.01 dB, as good."
    )
