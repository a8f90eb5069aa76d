from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.data import astronaut

from edgeadapt.blur import synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.cli import main
from edgeadapt.image import read_image
from edgeadapt.runtime import demo
from edgeadapt.runtime.demo import strip
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Adaptation, Session

CAPTION, GAP, SIDE = 36, 8, 512


def panels(picture: np.ndarray) -> list[np.ndarray]:
    return [picture[CAPTION : CAPTION + SIDE, x : x + SIDE] for x in range(0, 2048, SIDE + GAP)]


def test_the_picture_and_the_table_show_what_was_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--bundle", str(tiny), "-o", str(out), "--steps", "1", "--seed", "4"]) == 0
    blurred, plain, adapted, sharp = panels(read_image(out / "demo.png"))
    pair = synthesize_blur(astronaut(), replace(draw_parameters(4), objects=()))
    assert np.array_equal(blurred, pair.blurred)
    assert np.array_equal(sharp, pair.sharp)
    # Nothing lies over the photograph; only lights, levels 250 and up, are made white.
    assert np.abs(sharp.astype(int) - astronaut()).max() <= 5
    with Session(tiny) as session:
        assert np.array_equal(plain, session.restore(blurred))
        session.adapt(blurred, 1)
        assert np.array_equal(adapted, session.restore(blurred))
    text = capsys.readouterr().out
    for name, image in (("blurred", blurred), ("K = 0", plain), ("K = 1", adapted)):
        row = next(line for line in text.splitlines() if name in line)
        assert f"{measure(image, sharp).psnr:.2f}" in row
    assert re.search(r"\d+ ms a step, \d+ ms to restore", text)
    assert f"wrote {out / 'demo.png'}" in text


@pytest.mark.parametrize(
    ("steps", "reverted", "rows"),
    [
        (0, "", ["blurred", "restored, K = 0"]),
        (2, "", ["blurred", "restored, K = 0", "adapted, K = 2"]),
        (2, "the loss rose", ["blurred", "restored, K = 0", "not adapted, K = 2 taken back"]),
    ],
)
def test_only_what_was_adapted_is_called_so(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    reverted: str,
    rows: list[str],
) -> None:
    captions: list[str] = []

    def kept(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        assert len(images) == len(texts)
        captions.extend(texts)
        return strip(images, texts)

    adapt = Session.adapt

    def taken_back(self: Session, *arguments: Any) -> Adaptation:
        done = adapt(self, *arguments)
        if reverted:
            self.reset()
        return replace(done, reverted=reverted)

    monkeypatch.setattr(demo, "strip", kept)
    monkeypatch.setattr(Session, "adapt", taken_back)
    with Session(tiny) as session:
        demo.print_outcome(demo.make_demo(session, tmp_path, steps, 0))
    assert [caption.split(":")[0] for caption in captions] == [*rows, "sharp"]
    table = capsys.readouterr().out.splitlines()[1:]
    assert all(line.startswith(row) for line, row in zip(table, rows, strict=False))
    assert len([line for line in table if "K = " in line]) == len(rows) - 1
    losses = [float(line.split()[-1]) for line in table if "K = " in line]
    assert losses[0] > 0
    assert (losses[-1] == losses[0]) == (reverted != "" or steps == 0)
    assert any(line == f"not adapted: {reverted}" for line in table) == bool(reverted)


def test_a_seed_below_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seed", "-1"]) == 2
    assert "Invalid value for '--seed': -1 is not in the range x>=0" in capsys.readouterr().err


def test_the_crop_is_enlarged_two_to_one() -> None:
    images = [np.random.default_rng(i).integers(0, 256, (512, 512, 3), np.uint8) for i in range(2)]
    picture = strip(images, ["a", "b"])
    top = CAPTION + SIDE + GAP
    for index, image in enumerate(images):
        left = index * (SIDE + GAP)
        crop = picture[top : top + SIDE, left : left + SIDE]
        assert np.array_equal(crop[::2, 1::2], image[0:256, 96:352])
    assert (picture[:CAPTION] < 128).any()  # there are captions


def test_an_unwritable_folder_is_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["demo", "--bundle", str(tiny), "-o", str(tmp_path / "file" / "x"), "--steps", "0"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "file is not a folder. Hint: " in error
    assert error.count("\n") == 1
