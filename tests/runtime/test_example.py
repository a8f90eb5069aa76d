"""`edgeadapt demo --blurred ... --sharp ...`: the strip of a real pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeadapt.cli import main
from edgeadapt.errors import ImageError
from edgeadapt.image import read_image
from edgeadapt.runtime.example import SIDE, busiest_square, example_strip
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Session
from edgeadapt.testing import photo

CAPTION, GAP = 24, 8
HEIGHT, WIDTH = 330, 401


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A blurred and a sharp image; they differ below 7 and right of 50 only."""
    sharp = photo(1, HEIGHT, WIDTH)
    blurred = sharp.copy()
    blurred[7:327, 50:370] = sharp[7:327, 50:370] // 2
    for name, image in (("blurred", blurred), ("sharp", sharp)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    return tmp_path / "blurred.png", tmp_path / "sharp.png"


def example(bundle: Path, pair: tuple[Path, Path], out: Path, *more: object) -> int:
    files = ("--blurred", pair[0], "--sharp", pair[1], "--bundle", bundle, "-o", out)
    return main(["demo", *map(str, (*files, *more))])


@pytest.mark.parametrize("corner", [None, (11, 3)])
def test_the_squares_are_the_pixels_of_what_was_measured(
    corner: tuple[int, int] | None,
    tiny: Path,
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given_corner = () if corner is None else ("--corner", *corner)
    assert example(tiny, pair, tmp_path / "out", "--steps", 2, *given_corner) == 0
    picture = read_image(tmp_path / "out" / "demo.png")
    blurred, sharp = map(read_image, pair)
    with Session(tiny) as session:
        plain = session.restore(blurred)
        session.adapt(blurred, 2)
        adapted = session.restore(blurred)
    left, top = corner or (50, 7)
    small = round(HEIGHT * SIDE / WIDTH)
    assert picture.shape == (CAPTION + small + GAP + SIDE, 4 * SIDE + 3 * GAP, 3)
    for index, image in enumerate((blurred, plain, adapted, sharp)):
        x = index * (SIDE + GAP)
        square = picture[-SIDE:, x : x + SIDE]
        assert np.array_equal(square, image[top : top + SIDE, left : left + SIDE]), index
        # Smaller, but the same picture: means of both differ by less than a level.
        whole = picture[CAPTION : CAPTION + small, x : x + SIDE]
        assert whole.mean() == pytest.approx(image.mean(), abs=1)
        assert (picture[:CAPTION, x : x + SIDE] < 128).any()
    text = capsys.readouterr().out
    for name, image in (("blurred", blurred), ("K = 0", plain), ("K = 2", adapted)):
        row = next(line for line in text.splitlines() if name in line)
        assert f"{measure(image, sharp).psnr:.2f}" in row


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(6, 12), st.integers(6, 12))
def test_the_square_is_where_the_difference_is_largest(
    seed: int, side: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    sums = {
        (y, x): np.abs(
            a[y : y + side, x : x + side].astype(int) - b[y : y + side, x : x + side]
        ).sum()
        for y in range(height - side + 1)
        for x in range(width - side + 1)
    }
    assert busiest_square(a, b, side) == max(
        sums, key=lambda place: (sums[place], -place[0], -place[1])
    )


def test_a_strip_is_as_wide_as_there_are_images() -> None:
    images = [photo(i, SIDE, SIDE) for i in range(3)]
    assert example_strip(images, ["a", "b", "c"], (0, 0)).shape[1] == 3 * SIDE + 2 * GAP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blurred", "blurred.png"], "--blurred and --sharp go together"),
        (["--sharp", "sharp.png"], "--blurred and --sharp go together"),
        (["--corner", "1", "2"], "--corner is for an image of yours"),
        (["--blurred", "blurred.png", "--sharp", "small.png"], "the sharp one 300x300"),
        (["--blurred", "small.png", "--sharp", "small.png"], "320 pixels at least"),
        (
            ["--blurred", "blurred.png", "--sharp", "sharp.png", "--corner", "82", "0"],
            "the square at 82,0 does not lie in an image of 401x330",
        ),
        (["--blurred", "nowhere.png", "--sharp", "sharp.png"], "there is no such file"),
    ],
)
def test_a_refusal_is_one_line(
    arguments: list[str],
    message: str,
    tiny: Path,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(photo(2, 300, 300)).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--bundle", str(tiny), "-o", "out", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert not Path("out").exists()


def test_images_of_different_size_have_no_square() -> None:
    with pytest.raises(ImageError, match="the blurred image is 20x10, the sharp one 10x20"):
        busiest_square(np.zeros((10, 20, 3), np.uint8), np.zeros((20, 10, 3), np.uint8), 5)
