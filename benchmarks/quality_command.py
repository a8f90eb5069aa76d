"""`edgeadapt bench quality`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgeadapt.benchmarks import plots
from edgeadapt.benchmarks.markdown import markdown_table, write_markdown
from edgeadapt.benchmarks.options import (
    adaptation_options,
    largest_size_option,
    layout_options,
    progress,
)
from edgeadapt.benchmarks.quality import Settings, make_models, plan, run
from edgeadapt.benchmarks.rows import Table
from edgeadapt.benchmarks.samples import find_samples
from edgeadapt.benchmarks.summary import LOWERED_DB, Summary, summarize
from edgeadapt.bundle import open_bundle
from edgeadapt.errors import ConfigError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.optimizer import flat_step_sizes
from edgeadapt.runtime.quality import check_installed
from edgeadapt.runtime.report import console, print_table
from edgeadapt.shifts import SHIFTS

_ALL = "all"
_NOTE = (
    "PSNR in dB, RGB, averaged over the images of a recording, then over recordings. "
    "raw gain: had no adaptation been taken back. SSIM: blurred, K=0, last. "
    f"lowered: images that lose more than {LOWERED_DB:g} dB by adaptation."
)
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--data", required=True, type=_PATH, help="Folder of recordings, pairs or photos.")
@layout_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Images of each recording.")
@largest_size_option
@click.option(
    "--shift",
    "shifts",
    multiple=True,
    type=click.Choice([_ALL, *SHIFTS]),
    help="Change the images first; once for each shift.",
)
@click.option(
    "--control",
    "controls",
    multiple=True,
    metavar="BUNDLE",
    help="The jointly trained weights, adapted as BUNDLE is.",
)
@adaptation_options(least_steps=0)
@click.option(
    "-o", "--out", type=_PATH, help="CSV of every image and step; goes on where it ended."
)
@click.option("--plot/--no-plot", default=True, help="Beside the CSV, as PNG.")
@click.option("--absolute", is_flag=True, help="Plot PSNR itself, not what each step adds.")
def quality(
    bundles: Sequence[str],
    data: Path,
    layout: str,
    blur: str,
    sharp: str,
    limit: int | None,
    size: tuple[int, int] | None,
    shifts: Sequence[str],
    controls: Sequence[str],
    steps: int | None,
    scope: str,
    step_size: float | None,
    backend: str,
    threads: int | None,
    precision: Precision,
    out: Path | None,
    plot: bool,
    absolute: bool,
) -> None:
    """PSNR and SSIM of blurred images, of plain inference, and after each step of adaptation.

    For each image of a folder in the layout of GoPro, of REDS, of pairs, or of sharp photos, which
    are blurred here. Averaged over the images of a recording, then over recordings.
    """
    check_installed()
    if out is not None:
        _check_out(out, plot)
    models = make_models([open_bundle(b) for b in bundles], [open_bundle(c) for c in controls])
    for model in models:  # refuses a wrong scope or number before the work
        flat_step_sizes(model.bundle, scope, step_size)
    settings = Settings(steps, scope, step_size, backend, threads, precision)
    samples = find_samples(data, layout, blur, sharp, limit, size)
    tasks = plan(models, samples, _chosen(shifts), settings)
    table = Table(out)
    missing = {task.key for task in tasks if table.get(task.key) is None}
    with progress("measuring", len(missing)) as advance:
        rows = run(tasks, settings, table, advance)
    summaries = summarize(tasks, rows)
    columns, lines = _table(summaries)
    print_table(columns, lines)
    console().print(_NOTE)
    if out is not None:
        write_markdown(out.with_suffix(".md"), markdown_table(columns, lines), _NOTE)
    if out is not None and plot:
        plots.write_plot(out.with_suffix(".png"), summaries, absolute)


def _check_out(out: Path, plot: bool) -> None:
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"{out}: --out must end in .csv.", "the plot gets the same name.")
    if plot:
        plots.check_installed()


def _chosen(shifts: Sequence[str]) -> list[str]:
    if _ALL in shifts:
        return list(SHIFTS)
    return list(dict.fromkeys(shifts)) or ["none"]


def _table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """One row for each model and shift; where K differs, missing steps are left empty."""
    most = max(len(summary.steps) for summary in summaries)
    columns = ["model", "shift", "images", "blurred", *(f"K={k}" for k in range(most)), "gain"]
    columns += ["raw gain", "SSIM", "lowered", "reverted"]
    return columns, [_row(summary, most) for summary in summaries]


def _row(summary: Summary, most: int) -> list[str]:
    steps = [f"{mean.psnr:.3f}" for mean in summary.steps]
    ssim = [summary.blurred.ssim, summary.steps[0].ssim, summary.steps[-1].ssim]
    return [
        summary.model,
        summary.shift,
        f"{summary.images} in {summary.recordings}",
        f"{summary.blurred.psnr:.3f}",
        *steps,
        *([""] * (most - len(steps))),
        f"{summary.gains[-1]:+.3f}",
        f"{summary.raw_gains[-1]:+.3f}",
        " ".join(f"{value:.4f}" for value in ssim),
        f"{summary.lowered:.0%}",
        f"{summary.reverted}",
    ]
