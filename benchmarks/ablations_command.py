"""`edgeadapt bench ablations`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeadapt.benchmarks import plots
from edgeadapt.benchmarks.ablations import Ablation, Suite, only, read_suite
from edgeadapt.benchmarks.markdown import markdown_table, write_markdown
from edgeadapt.benchmarks.row_file import RowFile
from edgeadapt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EdgeadaptError,
    ImageError,
)
from edgeadapt.runtime.quality import check_installed
from edgeadapt.runtime.report import console

if TYPE_CHECKING:
    from edgeadapt.benchmarks.ablation_runs import AblationRow, Place

_PATH = click.Path(path_type=Path)
_NOTE = (
    "PSNR in dB, averaged over the images of a recording, then over recordings. gain: over K=0 of "
    "the same weights; raw: had no adaptation been taken back. lowered: images that lose more than "
    "0.05 dB. Every row has the same seed and data, and as many iterations as the others of its "
    "stage; a row of meta training starts from a jointly trained one."
)
_COLUMNS = ["row", "parameters", "iterations", "j", "K", "blurred", "K=0", "SSIM", "adapted"]
_COLUMNS += ["gain", "raw", "lowered", "reverted"]


@click.command()
@click.option("--data", required=True, type=_PATH, help="Root of the paths in the base.")
@click.option("-o", "--out", type=_PATH, required=True, help="Folder; goes on where it ended.")
@click.option("--configs", type=_PATH, help="Folder with base.toml and the rows.  [shipped]")
@click.option("--only", "names", multiple=True, help="This row, and what it starts from.")
@click.option(
    "--iterations", type=click.IntRange(1), help="Of joint training; meta's in proportion.  [base]"
)
@click.option("--minutes", type=click.FloatRange(0), help="Stop after this time, to go on later.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--accelerator", default="cpu", show_default=True, help="cpu, cuda or auto.")
def ablations(
    data: Path,
    out: Path,
    configs: Path | None,
    names: Sequence[str],
    iterations: int | None,
    minutes: float | None,
    threads: int | None,
    accelerator: str,
) -> None:
    """Train and measure every row of the ablations, each from its own file.

    OUT/ablations.csv and OUT/ablations.md get a row as soon as it is measured, also one that
    failed; OUT/steps.png is PSNR against step for each trained K. Needs the extra `train`.
    """
    from edgeadapt.benchmarks.ablation_runs import AblationRow, Place

    check_installed()
    plots.check_installed()
    whole = read_suite(configs, iterations)
    suite = only(whole, set(names)) if names else whole
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    place = Place(whole, out, data, accelerator, threads, deadline)
    file = RowFile(out / "ablations.csv", AblationRow)
    file.rewrite(file.rows)
    finished = _run(place, suite, file)
    own = {row.digest for row in suite.rows}
    _write(out / "ablations.md", [row for row in file.rows if row.digest in own])
    _curves(place, {row.digest for row in file.rows if not row.failed})
    if not finished:
        console().print("The time is up: the same command goes on.")


def _run(place: Place, suite: Suite, file: RowFile[AblationRow]) -> bool:
    """Whether all rows are done; each is written as soon as it is."""
    from edgeadapt.benchmarks.ablation_runs import digest_of

    images = digest_of(place.samples())
    frames = digest_of(place.clip()) if any(r.row.stage == "stride" for r in suite.rows) else ""
    there = {row.digest for row in file.rows if row.failed or row.data in (images, frames)}
    for number, row in enumerate(suite.rows, 1):
        label = f"{number}/{len(suite.rows)} {row.name}"
        if row.digest in there:
            console().print(f"{label}: is there", markup=False, highlight=False)
            continue
        found = None if place.over() else _one(place, row, file.rows)
        if found is None:
            return False
        file.add(found)
        for result in found:
            console().print(f"{label}: {_said(result)}", markup=False, highlight=False)
        _write(place.out / "ablations.md", file.rows)
    return True


def _one(place: Place, row: Ablation, known: Sequence[AblationRow]) -> list[AblationRow] | None:
    """The numbers of one row, or why there are none; None if the time was up."""
    from edgeadapt.benchmarks.ablation_runs import failed_row, measure_row, train_row

    digests = {place.suite.row(row.row.start).digest} if row.row.start else set()
    try:
        if any(other.failed for other in known if other.digest in digests):
            raise EdgeadaptError(f"{row.row.start}, which it starts from, failed.")
        if row.row.stage != "stride" and not train_row(place, row):
            return None
        return measure_row(place, row)
    except (CheckpointError, ConfigError, DataError, ImageError):
        raise  # for the user to put right; the row is tried again
    except EdgeadaptError as error:
        return [failed_row(place, row, error)]


def _curves(place: Place, done: set[str]) -> None:
    """Plot PSNR against step once all the rows it takes are there."""
    config = place.suite.config
    needed = [*config.curves, *([config.control] if config.control else [])]
    if not config.curves or not {place.suite.row(name).digest for name in needed} <= done:
        return
    from edgeadapt.benchmarks.ablation_runs import write_curves

    summaries = write_curves(place)
    plots.write_plot(place.out / "steps.png", summaries)
    plots.write_plot(place.out / "steps-psnr.png", summaries, absolute=True)


def _write(path: Path, rows: Sequence[AblationRow]) -> None:
    """One table a group, in the order in which groups first appear."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        lines = [_cells(row) for row in rows if row.group == group]
        parts += [f"**{group}**", markdown_table(_COLUMNS, lines)]
    write_markdown(path, *parts, _NOTE)


def _cells(row: AblationRow) -> list[str]:
    if row.failed:
        return [row.title, "", f"{row.iterations}", *[""] * 9, f"failed: {row.failed}"]
    gain = None if row.adapted is None or row.plain is None else row.adapted - row.plain
    raw = None if row.raw is None or row.plain is None else row.raw - row.plain
    return [
        row.title,
        f"{row.parameters:,}",
        f"{row.iterations}",
        row.stride,
        f"{row.steps}",
        _number(row.blurred, ".3f"),
        _number(row.plain, ".3f"),
        _number(row.plain_ssim, ".4f"),
        _number(row.adapted, ".3f"),
        _number(gain, "+.4f"),
        _number(raw, "+.4f"),
        _number(row.lowered, ".0%"),
        _number(row.reverted, ".0f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _said(row: AblationRow) -> str:
    return ", ".join(
        f"{name} {cell}"
        for name, cell in zip(_COLUMNS, _cells(row), strict=True)
        if cell and name not in ("row", "parameters")
    )
