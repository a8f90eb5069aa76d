"""Averages, shares and the plot, on made-up rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeadapt.benchmarks.plots import step_figure
from edgeadapt.benchmarks.quality import Model, Task
from edgeadapt.benchmarks.rows import INPUT, Key, Row
from edgeadapt.benchmarks.samples import Sample
from edgeadapt.benchmarks.summary import Summary, summarize

PSNRS = {  # recording, image -> input, K=0, K=1, K=2
    ("a", "0"): (20.0, 21.0, 22.0, 20.96),  # 0.04 dB lower is not counted
    ("a", "1"): (30.0, 31.0, 31.5, 30.9),
    ("a", "2"): (25.0, 26.0, 26.5, 27.0),
    ("b", "0"): (10.0, 12.0, 12.4, 12.3),
}


def made(model: str, shift: str = "none", control: bool = False) -> list[tuple[Task, list[Row]]]:
    adaptation = SimpleNamespace(steps=1)
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(adaptation=adaptation))
    found = []
    for (recording, name), psnrs in PSNRS.items():
        key = Key("x", "auto", "fp32", "all", "", 2, shift, recording, name, "f")
        sample = Sample(recording, name, Path(name), None)
        rows = [
            Row(model, key, step, psnr, 0.1 + psnr / 100, None, (recording, step) == ("b", 2), psnr)
            for step, psnr in zip((INPUT, 0, 1, 2), psnrs, strict=True)
        ]
        found.append((Task(Model(model, bundle, control), shift, sample, key), rows))
    return found


def summaries(*groups: list[tuple[Task, list[Row]]]) -> list[Summary]:
    pairs = [pair for group in groups for pair in group]
    return summarize([task for task, _ in pairs], [rows for _, rows in pairs])


def test_recordings_count_alike_however_long_they_are() -> None:
    (found,) = summaries(made("m"))
    assert (found.images, found.recordings) == (4, 2)
    assert found.blurred.psnr == pytest.approx((25 + 10) / 2)
    assert found.steps[0].psnr == pytest.approx((26 + 12) / 2)
    assert found.steps[1].psnr == pytest.approx(((22 + 31.5 + 26.5) / 3 + 12.4) / 2)
    assert found.steps[0].ssim == pytest.approx(0.1 + found.steps[0].psnr / 100)
    second = ((20.96 + 30.9 + 27 - 78) / 3 + 0.3) / 2
    assert found.gains == pytest.approx([0, (2 / 3 + 0.4) / 2, second], abs=1e-12)
    assert found.lowered == 1 / 4
    assert found.reverted == 1


def test_equal_images_are_no_loss() -> None:
    group = made("m")
    endless = [Row(r.model, r.key, r.step, math.inf, 1.0, None, False, 1.0) for r in group[0][1]]
    (found,) = summaries([(group[0][0], endless)])
    assert found.lowered == 0
    assert found.blurred.psnr == math.inf


def with_raw(group: list[tuple[Task, list[Row]]], raw: float | None) -> list[Any]:
    """Recording b's last step was taken back, and would have given ``raw``."""
    return [
        (task, [replace(r, raw_psnr=raw) if r.reverted else r for r in rows])
        for task, rows in group
    ]


def test_the_raw_gain_is_what_the_steps_do_before_any_is_taken_back() -> None:
    (found,) = summaries(with_raw(made("m"), 9.0))
    assert found.raw_gains[:2] == pytest.approx(found.gains[:2])
    assert found.raw_gains[2] == pytest.approx(((20.96 + 30.9 + 27 - 78) / 3 + 9.0 - 12.0) / 2)
    (broken,) = summaries(with_raw(made("m"), None))
    assert math.isnan(broken.raw_gains[2])
    assert broken.gains == found.gains


def drawn(axes: Any) -> dict[tuple[str, str], list[float]]:
    """Line style and marker size -> heights, of lines with a colour of their own."""
    lines = [line for line in axes.lines if line.get_color() != "0.7"]
    return {
        (line.get_linestyle(), f"{line.get_markersize():g}"): list(line.get_ydata())
        for line in lines
    }


@pytest.mark.parametrize("absolute", [False, True])
def test_the_plot_has_a_line_for_each_model_in_a_panel_for_each_shift(absolute: bool) -> None:
    found = summaries(*(made(m, s, m == "c") for m in ("m", "c") for s in ("none", "half")))
    figure = step_figure(found, absolute)
    assert [axes.get_title() for axes in figure.axes] == ["none", "half"]
    start = found[0].steps[0].psnr if absolute else 0.0
    for axes in figure.axes:
        lines = {str(line.get_label()): line for line in axes.lines}
        assert {"m", "c"} <= lines.keys()
        assert len(axes.lines) == 2 + 2 + (not absolute)  # a ring each, and the one at zero
        assert list(lines["m"].get_ydata()) == pytest.approx([start + g for g in found[0].gains])
        assert list(lines["m"].get_xdata()) == [0, 1, 2]
        assert (lines["m"].get_linestyle(), lines["c"].get_linestyle()) == ("-", "--")
        ring = next(line for line in axes.lines if line.get_markersize() == 9)
        assert list(ring.get_xdata()) == [1]
        assert list(ring.get_ydata()) == pytest.approx([start + found[0].gains[1]])


@pytest.mark.parametrize(("raw", "shown"), [(11.8, True), (2.0, False), (None, False)])
def test_the_plot_shows_what_was_taken_back_unless_it_is_off_the_scale(
    raw: float | None, shown: bool
) -> None:
    found = summaries(with_raw(made("m"), raw))
    (axes,) = step_figure(found).axes
    dotted = drawn(axes)[":", "3"]
    assert dotted[:2] == pytest.approx(found[0].gains[:2])
    assert math.isfinite(dotted[2]) == shown
    if shown:
        assert dotted[2] == pytest.approx(found[0].raw_gains[2])
