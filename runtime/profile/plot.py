"""The roofline plot, drawn without a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeadapt.errors import ConfigError, EdgeadaptError
from edgeadapt.files import atomic_file
from edgeadapt.runtime.profile.parts import GROUPS, Group, Peaks
from edgeadapt.runtime.profile.roofline import Analysis, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = (12.0, 6.5)
_LABELLED = 10  # operations, the longest
# Colours that people who see few of them tell apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#999999")
_LARGEST = 350.0  # square points of the marker of the longest operation
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
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1), height_ratios=(2, 1))
    first = next(iter(analyses.values()))
    assert first.peaks is not None
    roof: Any = figure.add_subplot(grid[:, 0])
    bars: Any = figure.add_subplot(grid[0, 1])
    names: Any = figure.add_subplot(grid[1, 1])
    points = _draw_points(roof, analyses, names)
    _draw_roofs(roof, first.peaks, points)
    _draw_groups(bars, analyses)
    return figure


def _draw_points(
    axes: Any, analyses: Mapping[str, Analysis], names: Any
) -> list[tuple[float, float]]:
    """Draw the operations; the longest have numbers, which ``names`` explains."""
    every = [
        (row, label, group)
        for label, found in analyses.items()
        for row, group in _with_groups(found)
        if row.flops and row.moved_bytes and row.seconds > 0
    ]
    every.sort(key=lambda one: -one[0].seconds)
    points: list[tuple[float, float]] = []
    lines: list[str] = []
    for number, (row, label, group) in enumerate(every, 1):
        place = ((row.flops or 0) / (row.moved_bytes or 1), row.flops_per_second / 1e9)
        points.append(place)
        axes.scatter(
            *place,
            s=max(_LARGEST * row.seconds / every[0][0].seconds, 4.0),
            color=_COLOURS[GROUPS.index(group)],
            alpha=0.4,
            linewidths=0.4,
            edgecolors="0.2",
        )
        if number <= _LABELLED:
            axes.annotate(
                f"{number}",
                place,
                ha="center",
                va="center",
                fontsize=7,
                weight="bold",
                zorder=3,
            )
            lines.append(f"{number}  {label}: {row.name}, {1e3 * row.seconds:.3g} ms")
    names.axis("off")
    names.text(0, 1, "\n".join(lines), va="top", fontsize=6.5, transform=names.transAxes)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte, if each operand crosses to memory once",
        ylabel="GFLOP/s, counted as the direct algorithm's",
    )
    axes.grid(visible=True, which="major", color="0.92")
    axes.set_axisbelow(True)
    return points


def _with_groups(found: Analysis) -> Iterator[tuple[Row, Group]]:
    groups = {part.name: part.group for part in found.profile.parts}
    return ((row, groups[row.name]) for row in found.rows)


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
    # What is far below takes next to no time: it would squeeze the rest.
    top = max(*rates.values(), *(1e9 * y for _, y in points)) / 1e9
    axes.set_ylim(top / 3e3, top * 2)
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
