"""Folders of small pictures for tests of data and training."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from edgeadapt.testing import photo


def write_pictures(folder: Path, count: int, height: int, width: int, seed: int = 0) -> None:
    """``count`` pictures as 000.png, 001.png ... in a new folder."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(photo(1000 * seed + index, height, width)).save(folder / f"{index:03}.png")
