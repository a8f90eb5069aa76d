"""Averages, shares and the plot, on made-up rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.benchmarks.plots import gain_figure
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
    bundle: Any = None
    found = []
    for (recording, name), psnrs in PSNRS.items():
        key = Key("x", "auto", "all", "", 2, shift, recording, name, "f")
        sample = Sample(recording, name, Path(name), None)
        rows = [
            Row(model, key, step, psnr, 0.1 + psnr / 100, None, (recording, step) == ("b", 2))
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
    endless = [Row(r.model, r.key, r.step, math.inf, 1.0, None, False) for r in group[0][1]]
    (found,) = summaries([(group[0][0], endless)])
    assert found.lowered == 0
    assert found.blurred.psnr == math.inf


def test_the_plot_has_a_line_for_each_model_in_a_panel_for_each_shift() -> None:
    found = summaries(*(made(m, s, m == "c") for m in ("m", "c") for s in ("none", "half")))
    figure = gain_figure(found)
    assert [axes.get_title() for axes in figure.axes] == ["none", "half"]
    for axes in figure.axes:
        lines = {str(line.get_label()): line for line in axes.lines}
        assert {"m", "c"} <= lines.keys()
        assert len(axes.lines) == 3  # and the one at zero
        assert list(lines["m"].get_ydata()) == pytest.approx(found[0].gains)
        assert list(lines["m"].get_xdata()) == [0, 1, 2]
        assert (lines["m"].get_linestyle(), lines["c"].get_linestyle()) == ("-", "--")
