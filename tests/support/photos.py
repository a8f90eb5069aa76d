"""Folders of small pictures for tests of data and training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from edgeadapt.testing import photo


def write_pictures(folder: Path, count: int, height: int, width: int, seed: int = 0) -> None:
    """``count`` pictures as 000.png, 001.png ... in a new folder."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(photo(1000 * seed + index, height, width)).save(folder / f"{index:03}.png")


def write_recordings(folder: Path, counts: Mapping[str, int]) -> Path:
    """Recordings of so many pairs 21 high and 30 wide, in GoPro's layout; returns ``folder``."""
    for number, (name, count) in enumerate(counts.items()):
        write_pictures(folder / name / "blur", count, 21, 30, seed=2 * number)
        write_pictures(folder / name / "sharp", count, 21, 30, seed=2 * number + 1)
    return folder
