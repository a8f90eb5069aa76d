"""`edgeadapt bench video`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgeadapt.benchmarks.markdown import markdown_table, write_markdown
from edgeadapt.benchmarks.options import (
    adaptation_options,
    largest_size_option,
    layout_options,
    progress,
)
from edgeadapt.benchmarks.quality import Settings, make_models
from edgeadapt.benchmarks.samples import Sample, find_samples
from edgeadapt.benchmarks.video import (
    ClipTable,
    StrideSummary,
    make_clips,
    measure_clips,
    summarize_strides,
)
from edgeadapt.bundle import open_bundle
from edgeadapt.errors import ConfigError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.optimizer import flat_step_sizes
from edgeadapt.runtime.quality import check_installed
from edgeadapt.runtime.report import console, print_table

_PATH = click.Path(path_type=Path)
_STRIDES = (1, 3, 5, 10)  # the paper, Table 4
_NOTE = (
    "j: the weights are adapted to every j-th frame, from the bundle's own each time; 0: never. "
    "PSNR in dB, averaged over the frames of a recording, then over recordings. gain: over j=0. "
    "kept: share of the gain of j=1."
)
COLUMNS = ["model", "j", "frames", "blurred", "PSNR", "SSIM", "gain", "kept", "adapted", "reverted"]


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--data", required=True, type=_PATH, help="Folder of clips.")
@layout_options
@click.option("--frames", type=click.IntRange(1), metavar="N", help="The first N of each clip.")
@largest_size_option
@click.option(
    "--stride",
    "strides",
    multiple=True,
    type=click.IntRange(1),
    default=_STRIDES,
    show_default=True,
    help="j; once for each.",
)
@adaptation_options(least_steps=1)
@click.option("-o", "--out", type=_PATH, help="CSV of every frame; goes on where it ended.")
def video(
    bundles: Sequence[str],
    data: Path,
    layout: str,
    blur: str,
    sharp: str,
    frames: int | None,
    size: tuple[int, int] | None,
    strides: Sequence[int],
    steps: int | None,
    scope: str,
    step_size: float | None,
    backend: str,
    threads: int | None,
    precision: Precision,
    out: Path | None,
) -> None:
    """PSNR and SSIM of clips whose weights are adapted to every j-th frame.

    The images of a recording are its frames, in the order of their names: they should follow each
    other as the camera took them. A table goes beside the CSV, as Markdown.
    """
    check_installed()
    if out is not None and out.suffix.lower() != ".csv":
        raise ConfigError(f"{out}: --out must end in .csv.", "the table gets the same name.")
    models = make_models([open_bundle(bundle) for bundle in bundles], [])
    for model in models:  # refuses a wrong scope or number before the work
        flat_step_sizes(model.bundle, scope, step_size)
    samples = first_frames(find_samples(data, layout, blur, sharp, size=size), frames)
    settings = Settings(steps, scope, step_size, backend, threads, precision)
    clips = make_clips(models, samples, [0, *dict.fromkeys(strides)], settings)
    table = ClipTable(out)
    missing = sum(len(clip.frames) for clip in clips if table.get(clip) is None)
    with progress("measuring", missing, lines=True) as advance:
        rows = measure_clips(clips, settings, table, advance)
    lines = stride_lines(summarize_strides(clips, rows))
    print_table(COLUMNS, lines)
    console().print(_NOTE)
    if out is not None:
        write_markdown(out.with_suffix(".md"), markdown_table(COLUMNS, lines), _NOTE)


def first_frames(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """The first ``count`` of each recording, in their order; None: all."""
    seen: dict[str, int] = {}
    kept = []
    for sample in samples:
        seen[sample.recording] = seen.get(sample.recording, 0) + 1
        if count is None or seen[sample.recording] <= count:
            kept.append(sample)
    return kept


def stride_lines(summaries: Sequence[StrideSummary]) -> list[list[str]]:
    """The table's lines; every model has a summary of stride 0."""
    plain = {s.model: s.quality.psnr for s in summaries if s.stride == 0}
    full = {s.model: s.quality.psnr - plain[s.model] for s in summaries if s.stride == 1}
    return [_line(s, s.quality.psnr - plain[s.model], full.get(s.model)) for s in summaries]


def _line(summary: StrideSummary, gain: float, full: float | None) -> list[str]:
    # A share of nothing, or of a loss, says nothing.
    kept = f"{gain / full:.0%}" if summary.stride and full is not None and full > 0 else ""
    return [
        summary.model,
        f"{summary.stride}",
        f"{summary.frames} in {summary.recordings}",
        f"{summary.blurred:.3f}",
        f"{summary.quality.psnr:.3f}",
        f"{summary.quality.ssim:.4f}",
        f"{gain:+.4f}" if summary.stride else "",
        kept,
        f"{summary.adapted}",
        f"{summary.reverted}",
    ]
