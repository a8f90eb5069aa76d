"""The plot of what each step gains, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadapt.benchmarks.summary import Summary
from edgeadapt.errors import EdgeadaptError
from edgeadapt.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3  # panels side by side
_PANEL_INCHES = (4.2, 3.2)


def check_installed() -> None:
    """Raise an `EdgeadaptError` unless matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise EdgeadaptError(
            "the plot needs matplotlib, which is not installed.",
            "pip install 'edgeadapt[bench]', or say --no-plot.",
        ) from error


def write_plot(path: Path, summaries: Sequence[Summary]) -> None:
    """Write `gain_figure` as a PNG; the file appears whole or not at all."""
    figure = gain_figure(summaries)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def gain_figure(summaries: Sequence[Summary]) -> Figure:
    """PSNR over plain inference against step: one panel a shift, one line a model.

    Controls are dashed.
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
        for summary in summaries:
            if summary.shift == shift:
                style = "--" if summary.control else "-"
                panel.plot(summary.gains, style, marker="o", markersize=3, label=summary.model)
        panel.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set(xlabel="step", ylabel="PSNR over K = 0, dB")
        panel.set_title(shift if len(shifts) > 1 or shift != "none" else "")
    for panel in panels[len(shifts) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize="small")
    return figure
