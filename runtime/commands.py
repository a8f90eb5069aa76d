"""The commands of the device: run, info, demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeadapt.blur import Pair
from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle, open_bundle
from edgeadapt.errors import ImageError
from edgeadapt.image import read_image
from edgeadapt.runtime import planning, report
from edgeadapt.runtime.backend import EngineOptions, Precision
from edgeadapt.runtime.batch import Result, Settings, process
from edgeadapt.runtime.inputs import Job, plan
from edgeadapt.runtime.optimizer import flat_step_sizes
from edgeadapt.runtime.options import (
    ImageSize,
    backend_option,
    budget_option,
    json_option,
    precision_option,
    scope_option,
    step_size_option,
    threads_option,
)
from edgeadapt.runtime.quality import check_installed
from edgeadapt.runtime.session import Session
from edgeadapt.shipped import shipped_names

_BUDGET = budget_option(
    "Most that a step's intermediate values may take; what does not fit is computed again."
)
_STEPS = click.option(
    "--steps", type=click.IntRange(0), help="Gradient steps K; 0: plain inference.  [bundle's]"
)
GRAPHS = {"adapt": "", "restore": RESTORE_GRAPH, "loss": LOSS_GRAPH}  # "": that of the scope


@click.command()
@click.argument("bundle")
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--out", required=True, help="Folder for NAME.png, or a file for one input.")
@_STEPS
@scope_option()
@step_size_option("Step size of every parameter.  [bundle's]")
@click.option(
    "--every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="J",
    help="Adapt to every J-th image and reuse the weights between.",
)
@click.option("--keep-steps", is_flag=True, help="Also write NAME.step0.png ... NAME.stepK.png.")
@click.option("--reference", help="Sharp image, or folder of them by name: PSNR and SSIM.")
@backend_option()
@threads_option()
@precision_option()
@_BUDGET
@click.option("--engine", help="Of --backend tensorrt: a file that `edgeadapt build` wrote.")
@json_option()
def run(
    bundle: str,
    inputs: tuple[str, ...],
    out: str,
    steps: int | None,
    scope: str,
    step_size: float | None,
    every: int,
    keep_steps: bool,
    reference: str | None,
    backend: str,
    threads: int | None,
    precision: Precision,
    memory_budget: int | None,
    engine: str | None,
    as_json: bool,
) -> None:
    """Adapt BUNDLE to each of INPUT... and restore it.

    INPUTS are images, folders and patterns; BUNDLE is a folder, or "nano", "edge" or "default" for
    one that comes with edgeadapt. Each image starts from the bundle's weights. An input is never
    overwritten.
    """
    if reference is not None:
        check_installed()
    opened = open_bundle(bundle)
    flat_step_sizes(opened, scope, step_size)  # refuses a wrong scope or number before the work
    count = opened.manifest.adaptation.steps if steps is None else steps
    jobs = plan(inputs, out, reference, kept_steps=count + 1 if keep_steps else 0)
    settings = Settings(count, scope, step_size, every, keep_steps)
    results: list[Result] = []
    try:
        with Session(opened, backend, threads, precision, memory_budget, engine) as session:
            _with_progress(session, jobs, settings, results)
    finally:  # Ctrl-C after an hour must not lose what that hour has shown
        if results:
            _print_results(opened, settings, results, as_json)
    _raise_failures(results)


@click.command()
@click.argument("bundle")
@click.option("--plan", "planned", is_flag=True, help="Print an engine's plan instead.")
@click.option(
    "--size",
    type=ImageSize(),
    default="1280x720",
    show_default=True,
    metavar="WxH",
    help="Plan: of the image.",
)
@click.option(
    "--graph",
    type=click.Choice(list(GRAPHS)),
    default="adapt",
    show_default=True,
    help="Plan: a step of an adaptation, restoring, or the loss.",
)
@scope_option("Plan: which parameters change.")
@click.option(
    "--backend",
    type=click.Choice(planning.ENGINES),
    default="native",
    show_default=True,
    help="Plan: of which engine; that of cuda needs no GPU.",
)
@precision_option()
@threads_option()
@_BUDGET
@json_option()
def info(
    bundle: str,
    planned: bool,
    size: tuple[int, int],
    graph: str,
    scope: str,
    backend: str,
    precision: Precision,
    threads: int | None,
    memory_budget: int | None,
    as_json: bool,
) -> None:
    """Say what is in BUNDLE, after checking all of it.

    With --plan: what an engine would run for an image, and the memory it would take.
    """
    if not planned:
        _refuse_given("size", "graph", "scope", "backend", "precision", "threads", "memory_budget")
    opened = open_bundle(bundle)
    if planned:
        chosen = GRAPHS[graph] or opened.scope(scope).graph
        options = EngineOptions(threads, precision, memory_budget)
        updated = () if GRAPHS[graph] else opened.scope(scope).parameters
        planning.print_plan_of(opened, chosen, size, options, as_json, updated, backend)
    elif as_json:
        report.print_json(report.info_document(opened))
    else:
        report.print_info(opened)


def _refuse_given(*names: str) -> None:
    """Refuse options of --plan that would be ignored."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} is of --plan, which was not given.")


@click.command()
@click.option("-o", "--out", default="demo", show_default=True, help="Folder for demo.png.")
@click.option(
    "--bundle", default="default", show_default=True, help=f"A folder, {shipped_names()}."
)
@_STEPS
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which blur.")
@click.option("--blurred", type=click.Path(path_type=Path), help="An image of yours instead.")
@click.option("--sharp", type=click.Path(path_type=Path), help="What it should look like.")
@click.option(
    "--corner",
    type=(int, int),
    metavar="X Y",
    help="Of the square shown 1:1.  [where blurred and sharp differ most]",
)
@backend_option()
@threads_option()
def demo(
    out: str,
    bundle: str,
    steps: int | None,
    seed: int,
    blurred: Path | None,
    sharp: Path | None,
    corner: tuple[int, int] | None,
    backend: str,
    threads: int | None,
) -> None:
    """Blur a photograph, adapt to it, restore it, and put them side by side in a picture.

    With --blurred and --sharp: the same for a pair of images of your own.
    """
    from edgeadapt.runtime.demo import make_demo, make_example, print_outcome

    if (blurred is None) != (sharp is None):
        raise click.UsageError("--blurred and --sharp go together.")
    if blurred is None or sharp is None:
        if corner is not None:
            raise click.UsageError("--corner is for an image of yours: give --blurred and --sharp.")
        with Session(bundle, backend, threads) as session:
            print_outcome(make_demo(session, Path(out), steps, seed))
        return
    pair = Pair(read_image(blurred), read_image(sharp))
    place = None if corner is None else (corner[1], corner[0])
    with Session(bundle, backend, threads) as session:
        print_outcome(make_example(session, pair, Path(out), steps, place))


def _with_progress(
    session: Session, jobs: list[Job], settings: Settings, results: list[Result]
) -> None:
    """Append to ``results`` as they come, so that the caller has them whatever happens."""
    with _progress(len(jobs)) as advance:
        for result in process(session, jobs, settings):
            results.append(result)
            advance()


def _print_results(
    bundle: Bundle, settings: Settings, results: list[Result], as_json: bool
) -> None:
    if not as_json:
        report.print_results(results)
        return
    options = {name: getattr(settings, name) for name in ("steps", "scope", "every", "step_size")}
    images = [report.result_document(result) for result in results]
    report.print_json({"bundle": str(bundle.path), **options, "images": images})


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr if that is a terminal; gives the function that moves it."""
    console = report.console(stderr=True)
    columns = (
        TextColumn("restoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _raise_failures(results: list[Result]) -> None:
    """The images that failed, as the one error of the whole run."""
    failed = [result.error for result in results if result.error]
    if len(failed) == 1 and len(results) == 1:
        raise ImageError(failed[0])
    if failed:
        raise ImageError(f"{len(failed)} of {len(results)} images failed: {' | '.join(failed)}")
