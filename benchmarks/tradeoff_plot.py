"""The plot of quality against time, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadapt.benchmarks.tradeoff import NO_SCOPE, Point, best_points
from edgeadapt.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = (9.0, 5.5)
_MARKERS = "osv^DP"


def write_plot(path: Path, points: Sequence[Point]) -> None:
    """Write `tradeoff_figure` as a PNG; the file appears whole or not at all."""
    figure = tradeoff_figure(points)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def tradeoff_figure(points: Sequence[Point]) -> Figure:
    """PSNR against milliseconds: a colour a bundle, a marker an engine, K beside each point.

    A thin line joins the steps of one bundle, engine and scope; a thick one is the Pareto front,
    whose points say the scope as well.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    bundles = list(dict.fromkeys(point.setup.bundle for point in points))
    colours = {name: f"C{number}" for number, name in enumerate(bundles)}
    engines = list(dict.fromkeys(map(_engine, points)))
    markers = {name: _MARKERS[number % len(_MARKERS)] for number, name in enumerate(engines)}
    _draw_front(axes, points)
    for path in _paths(points):
        places = [(point.milliseconds, point.psnr) for point in path]
        colour = colours[path[0].setup.bundle]
        axes.plot(*zip(*places, strict=True), color=colour, linewidth=0.6, alpha=0.5)
    for point in points:
        axes.plot(
            point.milliseconds,
            point.psnr,
            markers[_engine(point)],
            color=colours[point.setup.bundle],
            markersize=5,
        )
    for name, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=4, label=name)
    for name, marker in markers.items():
        axes.plot([], [], marker, color="0.4", label=name)
    axes.set_xscale("log")
    axes.margins(0.08)
    axes.set(xlabel="milliseconds an image, adaptation and restoration", ylabel="PSNR, dB")
    axes.grid(visible=True, which="both", color="0.93")
    axes.legend(fontsize="small")
    return figure


def _draw_front(axes: Any, points: Sequence[Point]) -> None:
    front = best_points(points)
    best = [points[place] for place in front]
    axes.plot(
        [point.milliseconds for point in best],
        [point.psnr for point in best],
        color="0.75",
        linewidth=4,
        drawstyle="steps-post",
        label="Pareto front",
        zorder=0,
    )
    for place, point in enumerate(points):
        setup = point.setup
        label = f"{setup.steps}"
        if place in front:
            label = f"K={setup.steps}" + ("" if setup.scope == NO_SCOPE else f" {setup.scope}")
        axes.annotate(
            label,
            (point.milliseconds, point.psnr),
            textcoords="offset points",
            xytext=(5, 4),
            rotation=30 if place in front else 0,  # neighbours do not cover each other
            fontsize=8 if place in front else 6,
            color="0" if place in front else "0.45",
        )


def _paths(points: Sequence[Point]) -> list[list[Point]]:
    """From plain inference over the steps of each bundle, engine and scope."""
    plain = {(p.setup.bundle, _engine(p)): p for p in points if p.setup.scope == NO_SCOPE}
    adapted = [point for point in points if point.setup.scope != NO_SCOPE]

    def of(point: Point) -> tuple[str, str, str]:
        return point.setup.bundle, _engine(point), point.setup.scope

    result = []
    for key, group in groupby(sorted(adapted, key=of), of):
        start = [plain[key[:2]]] if key[:2] in plain else []
        result.append(start + sorted(group, key=lambda point: point.setup.steps))
    return result


def _engine(point: Point) -> str:
    return f"{point.setup.backend} {point.setup.precision}"
