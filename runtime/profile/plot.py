"""The roofline plot, drawn without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeadapt.errors import ConfigError, EdgeadaptError
from edgeadapt.files import atomic_file
from edgeadapt.runtime.profile.parts import GROUPS, Peaks
from edgeadapt.runtime.profile.roofline import Analysis, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = (12.0, 6.5)
_LABELLED = 5  # operations, the longest
# Colours that people who see few of them tell apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#999999")
_LARGEST = 900.0  # square points of the marker of the longest operation
_DASHES = ("-", "--", ":", "-.")


def check_installed() -> None:
    """Raise an `EdgeadaptError` unless matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise EdgeadaptError(
            "the plot needs matplotlib, which is not installed.",
            "pip install 'edgeadapt[bench]', or leave out --plot.",
        ) from error


def write_plot(path: Path, title: str, analyses: Mapping[str, Analysis]) -> None:
    """Write `roofline_figure` as a PNG; the file appears whole or not at all.

    Raises:
        ConfigError: if it cannot be written there.
    """
    figure = roofline_figure(title, analyses)
    try:
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}).", "give another path.") from None


def roofline_figure(title: str, analyses: Mapping[str, Analysis]) -> Figure:
    """Rates against intensity, one circle an operation, its area the time; beside it the groups.

    All analyses have the peaks of the same machine. Work is counted as the direct algorithm's, so
    that an operation can lie above the roof.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.add_gridspec(1, 2, width_ratios=(2.2, 1))
    first = next(iter(analyses.values()))
    assert first.peaks is not None
    roof: Any = figure.add_subplot(grid[0])
    points = _draw_points(roof, list(analyses.values()))
    _draw_roofs(roof, first.peaks, points)
    bars: Any = figure.add_subplot(grid[1])
    _draw_groups(bars, analyses)
    return figure


def _draw_points(axes: Any, analyses: Sequence[Analysis]) -> list[tuple[float, float]]:
    longest = max(row.seconds for found in analyses for row in found.rows)
    points: list[tuple[float, float]] = []
    for found in analyses:
        groups = {part.name: part.group for part in found.profile.parts}
        shown = [row for row in found.rows if row.flops and row.moved_bytes and row.seconds > 0]
        for number, row in enumerate(shown):
            place = (row.flops / row.moved_bytes, row.flops_per_second / 1e9)
            points.append(place)
            axes.scatter(
                *place,
                s=max(_LARGEST * row.seconds / longest, 4.0),
                color=_COLOURS[GROUPS.index(groups[row.name])],
                alpha=0.45,
                linewidths=0.4,
                edgecolors="0.2",
            )
            if number < _LABELLED:
                axes.annotate(
                    row.name, place, textcoords="offset points", xytext=(7, -3), fontsize=6
                )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte, if each operand crosses to memory once",
        ylabel="GFLOP/s, counted as the direct algorithm's",
    )
    axes.grid(visible=True, which="major", color="0.92")
    return points


def _draw_roofs(axes: Any, peaks: Peaks, points: Sequence[tuple[float, float]]) -> None:
    rates = peaks.flops_per_second
    ridge = max(rates.values()) / peaks.bytes_per_second
    xs = [x for x, _ in points] or [1.0]
    low, high = min(*xs, 0.5) / 1.5, max(*xs, 2 * ridge) * 1.5
    intensity = np.geomspace(low, high, 200)
    for (name, rate), style in zip(rates.items(), _DASHES, strict=False):
        height = np.minimum(rate, intensity * peaks.bytes_per_second) / 1e9
        label = f"{name}: {rate / 1e9:,.0f} GFLOP/s"
        axes.plot(intensity, height, style, color="0.15", linewidth=1.2, label=label)
    axes.plot([], [], " ", label=f"memory: {peaks.bytes_per_second / 1e9:,.1f} GB/s")
    axes.set_xlim(low, high)
    axes.legend(title=f"measured peaks, {peaks.threads} threads", fontsize="small")


def _draw_groups(axes: Any, analyses: Mapping[str, Analysis]) -> None:
    labels: list[str] = []
    rows: list[Row] = []
    colours: list[str] = []
    for label, found in analyses.items():
        for row in found.groups:
            labels.append(f"{label}\n{row.name}")
            rows.append(row)
            colours.append(_COLOURS[[*GROUPS].index(row.name)])  # type: ignore[arg-type]
    places = range(len(rows))[::-1]
    times = [1e3 * row.seconds for row in rows]
    axes.barh(places, times, color=colours, alpha=0.6)
    for place, row in zip(places, rows, strict=True):
        note = "" if row.roofline is None else f", {row.roofline:.0%} of the roofline"
        axes.annotate(
            f" {1e3 * row.seconds:.3g} ms{note}", (0, place), va="center", fontsize=7, color="0.1"
        )
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_xlabel("milliseconds")
