from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.profile.plot import roofline_figure, write_plot
from edgeadapt.runtime.profile.roofline import Analysis, analyse
from support.profiles import PEAKS, part, profile


def analyses() -> dict[str, Analysis]:
    long = part("conv of the longest name #0", [0.4] * 3, flops=10**10, moved_bytes=10**9)
    short = part("grad #1", [0.1] * 3, group="weight-gradient", flops=10**9, moved_bytes=10**8)
    unknown = part("op #2", [0.1] * 3, group="other", flops=None)
    return {"step": analyse(profile([short, long, unknown], [1.0] * 3), PEAKS)}


def test_each_operation_lies_at_its_intensity_and_rate() -> None:
    figure = roofline_figure("title", analyses())
    roof, bars, names = figure.axes
    placed = [tuple(points.get_offsets()[0]) for points in roof.collections]
    # The longest first: 10 FLOP a byte at 25 GFLOP/s; what is not known is not drawn.
    assert placed == [pytest.approx((10, 25)), pytest.approx((10, 10))]
    areas = [points.get_sizes()[0] for points in roof.collections]
    assert areas[1] == pytest.approx(areas[0] / 4)
    (text,) = names.texts
    assert text.get_text().splitlines()[0] == "1  step: conv of the longest name #0, 400 ms"
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert labels == ["step\nforward", "step\nweight-gradient", "step\nother"]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([400, 100, 100])


def test_the_roofs_are_the_peaks() -> None:
    roof = roofline_figure("title", analyses()).axes[0]
    fp32, bf16 = (line.get_xydata() for line in roof.lines[:2])
    assert fp32[-1, 1] == pytest.approx(100)
    assert bf16[-1, 1] == pytest.approx(200)
    # 10 GB/s on the slope.
    assert fp32[0, 1] == pytest.approx(10 * fp32[0, 0])


def test_the_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_plot(tmp_path / "roof.png", "title", analyses())
    with Image.open(tmp_path / "roof.png") as image:
        assert image.format == "PNG"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_plot(tmp_path / "none" / "roof.png", "title", analyses())
    assert [path.name for path in tmp_path.iterdir()] == ["roof.png"]
