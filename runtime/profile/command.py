"""The command `edgeadapt profile`."""

from __future__ import annotations

from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import click

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import ConfigError
from edgeadapt.runtime import report
from edgeadapt.runtime.backend import EngineOptions, Precision
from edgeadapt.runtime.cuda.devices import device_names
from edgeadapt.runtime.options import (
    ImageSize,
    backend_option,
    budget_option,
    json_option,
    precision_option,
    scope_option,
    threads_option,
)
from edgeadapt.runtime.profile.predict import THIS, Work, print_prediction
from edgeadapt.runtime.profile.session_profile import (
    Request,
    Targets,
    compute_seconds,
    run_profile,
)
from edgeadapt.runtime.profile.timing import Plan


class Percents(click.ParamType[tuple[float, ...]]):
    """90,95,99 on the command line."""

    name = "percents"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Refuse what is not a list of numbers from 0 to 100."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(word) for word in str(value).split(","))
        except ValueError:
            found = (-1.0,)
        if not all(0.0 <= percent <= 100.0 for percent in found):
            self.fail(f"{value!r} is no list of numbers from 0 to 100, such as 90,95,99.")
        return found


class Span(click.FloatRange):
    """A time that ends: nan would measure nothing that was asked for, and inf for ever."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse what is no number from 0 to the most."""
        found: float = super().convert(value, param, ctx)
        if isnan(found):
            self.fail(f"{value!r} is no number of 0 or more.", param, ctx)
        return found


_SPAN = Span(0, 1_000_000)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle")
@click.option("--size", type=ImageSize(), default="1280x720", show_default=True, metavar="WxH")
@click.option("--steps", type=click.IntRange(0), help="Gradient steps K an image.  [bundle's]")
@scope_option()
@backend_option()
@precision_option()
@threads_option()
@budget_option("Most that a step's intermediate values may take.")
@click.option(
    "--warmUp", "--warm-up", "warm_up", type=_SPAN, default=200, show_default=True,
    metavar="MS", help="Run for at least so long before measuring; at least one image.",
)  # fmt: skip
@click.option(
    "--duration", type=_SPAN, default=3, show_default=True, metavar="S",
    help="Measure for at least so many seconds.",
)  # fmt: skip
@click.option(
    "--iterations", type=click.IntRange(1), default=10, show_default=True, metavar="N",
    help="Measure at least so many images.",
)  # fmt: skip
@click.option(
    "--avgRuns", "--avg-runs", "average", type=click.IntRange(1), default=10, show_default=True,
    metavar="N", help="Print averages of so many images each.",
)  # fmt: skip
@click.option(
    "--percentile", type=Percents(), default="90,95,99", show_default=True, metavar="P1,P2,...",
    help="Percentiles to give.",
)  # fmt: skip
@click.option(
    "--idleTime", "--idle-time", "idle", type=_SPAN, default=0, show_default=True,
    metavar="MS", help="Sleep between two images.",
)  # fmt: skip
@click.option(
    "--repetitions", type=click.IntRange(1), default=10, show_default=True, metavar="N",
    help="Of the step and the restoration whose operations are timed, apart from the summary.",
)  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(0), default=15, show_default=True,
    help="How many operations to list, the longest first; 0: groups only.",
)  # fmt: skip
@click.option("--dumpProfile", "--dump-profile", "dump", is_flag=True, help="List all operations.")
@click.option(
    "--separateProfileRun", "--separate-profile-run", is_flag=True, expose_value=False,
    help="As it always is here: operations are never timed while the summary is measured.",
)  # fmt: skip
@click.option("--no-operations", is_flag=True, help="Print the summary only.")
@click.option(
    "--export", "--exportProfile", "--export-profile", "export", type=_FILE, metavar="FILE",
    help="Write the operations as trtexec does, and beside it the layers (layers_...).",
)  # fmt: skip
@click.option(
    "--exportTimes", "--export-times", "times", type=_FILE, metavar="FILE",
    help="Write the times of each image as trtexec does.",
)  # fmt: skip
@click.option(
    "--trace", type=_FILE, metavar="FILE", help="Write a Chrome trace, for ui.perfetto.dev."
)
@click.option("--plot", type=_FILE, metavar="FILE.png", help="Write a roofline plot.")
@click.option(
    "--predict", type=click.Choice([THIS, *device_names()]),
    help="Predict the time on this device instead of measuring; \"this\": on this machine's CPU.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="With --predict this: measure afterwards, and compare.")
@json_option()
def profile(
    bundle: str,
    size: tuple[int, int],
    steps: int | None,
    scope: str,
    backend: str,
    precision: Precision,
    threads: int | None,
    memory_budget: int | None,
    warm_up: float,
    duration: float,
    iterations: int,
    average: int,
    percentile: tuple[float, ...],
    idle: float,
    repetitions: int,
    rows: int,
    dump: bool,
    no_operations: bool,
    export: Path | None,
    times: Path | None,
    trace: Path | None,
    plot: Path | None,
    predict: str | None,
    check: bool,
    as_json: bool,
) -> None:
    """Say where the time of adapting to an image and restoring it goes.

    One run is an image in, K gradient steps, the restored image out. First runs are measured as
    trtexec does it; then a step and a restoration are taken apart into operations, and held to what
    this machine can do at most. docs/profile.md says what each number means.
    """
    opened = open_bundle(bundle)
    opened.scope(scope)  # refuses a wrong name before the work
    count = opened.manifest.adaptation.steps if steps is None else steps
    request = Request(
        bundle=opened,
        size=size,
        steps=count,
        scope=scope,
        backend=backend,
        options=EngineOptions(threads, precision, memory_budget),
        plan=Plan(warm_up / 1e3, duration, iterations, idle / 1e3),
        percents=percentile,
        repetitions=repetitions,
        operations=not no_operations,
    )
    targets = Targets(export, times, trace, plot)
    if check and predict != THIS:
        given = f"--predict {predict}" if predict else "nothing predicted"
        raise ConfigError(
            f"--check holds a prediction to this machine, got {given}.",
            "say --predict this, or leave --check out.",
        )
    if predict is not None:
        targets.refuse("--predict measures no operations, and has nothing for a file.")
        work = Work(opened, size, count, scope, backend, request.options)
        measure = partial(compute_seconds, request) if check else None
        print_prediction(work, predict, as_json, measure, report.console())
        return
    run_profile(request, targets, None if dump else rows, average, as_json)
