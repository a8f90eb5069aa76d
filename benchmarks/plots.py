"""The plot of what each step gains, drawn without a screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadapt.benchmarks.summary import Summary
from edgeadapt.errors import EdgeadaptError
from edgeadapt.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3  # panels side by side
_PANEL_INCHES = (4.2, 3.2)
_LOWEST_DB = -1.0


def check_installed() -> None:
    """Raise an `EdgeadaptError` unless matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise EdgeadaptError(
            "the plot needs matplotlib, which is not installed.",
            "pip install 'edgeadapt[bench]', or say --no-plot.",
        ) from error


def write_plot(path: Path, summaries: Sequence[Summary], absolute: bool = False) -> None:
    """Write `step_figure` as a PNG; the file appears whole or not at all."""
    figure = step_figure(summaries, absolute)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def step_figure(summaries: Sequence[Summary], absolute: bool = False) -> Figure:
    """PSNR against step, over that of plain inference unless ``absolute``.

    One panel a shift, one line a model. Controls are dashed. A ring marks the K that a model was
    trained for. A dotted line is what the steps would give if none were taken back; it is cut
    where it falls `_LOWEST_DB` below plain inference, or it would flatten all others.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shifts = list(dict.fromkeys(summary.shift for summary in summaries))
    columns = min(_COLUMNS, len(shifts))
    rows = -(-len(shifts) // columns)
    size = (columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1])
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, shift in zip(panels, shifts, strict=False):
        shown = [summary for summary in summaries if summary.shift == shift]
        for number, summary in enumerate(shown):
            _draw(panel, summary, f"C{number}", absolute)
        if not absolute:
            panel.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set(xlabel="step", ylabel="PSNR, dB" if absolute else "PSNR over K = 0, dB")
        panel.set_title(shift if len(shifts) > 1 or shift != "none" else "")
    for panel in panels[len(shifts) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize="small")
    return figure


def _draw(panel: Any, summary: Summary, colour: str, absolute: bool) -> None:
    start = summary.steps[0].psnr if absolute else 0.0
    values = [start + gain for gain in summary.gains]
    style = "--" if summary.control else "-"
    panel.plot(values, style, color=colour, marker="o", markersize=3, label=summary.model)
    if summary.trained_steps < len(values):
        trained = summary.trained_steps
        panel.plot(trained, values[trained], "o", color=colour, markersize=9, fillstyle="none")
    if summary.raw_gains != summary.gains:
        kept = [start + gain if gain >= _LOWEST_DB else math.nan for gain in summary.raw_gains]
        panel.plot(kept, ":", color=colour, marker=".", markersize=3)
