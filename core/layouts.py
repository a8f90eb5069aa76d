"""The folder layouts that data sets come in: which files belong together, and to which recording.

Nothing is decoded here, so training and benchmarks share it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgeadapt.errors import DataError
from edgeadapt.image import SUFFIXES

LAYOUTS = {
    "gopro": "<sequence>/blur (or blur_gamma) and <sequence>/sharp, with the same file names",
    "reds": "train_blur/<sequence>/* and train_sharp/<sequence>/*, or val_blur and val_sharp",
    "pairs": "blur/ and sharp/, with the same file names",
    "sharp": "sharp images, right inside the folder or one folder deeper",
}


class PairFiles(NamedTuple):
    """A blurred and a sharp file of one moment."""

    recording: str  # the sequence it belongs to: frames of one are alike, and count together
    blurred: Path
    sharp: Path


def read_gopro(folder: Path, blur: str = "blur", sharp: str = "sharp") -> list[PairFiles]:
    """Pairs of every ``<sequence>``; ``folder`` may be a sequence itself.

    Raises:
        DataError: if a blurred image has no sharp one, or the other way round.
    """
    sequences = [folder, *_folders(folder)]
    return [pair for place in sequences for pair in read_pairs(place, blur, sharp)]


def read_reds(folder: Path) -> list[PairFiles]:
    """Pairs of every ``<split>_blur/<sequence>`` and ``<split>_sharp/<sequence>``.

    Raises:
        DataError: if a blurred image has no sharp one, or the other way round.
    """
    pairs = []
    for split in ("train", "val"):
        if (folder / f"{split}_blur").is_dir():
            for sequence in _folders(folder / f"{split}_blur"):
                partner = folder / f"{split}_sharp" / sequence.name
                pairs += _match(f"{split}_{sequence.name}", sequence, partner)
    return pairs


def read_pairs(folder: Path, blur: str = "blur", sharp: str = "sharp") -> list[PairFiles]:
    """Pairs of ``<blur>/`` and ``<sharp>/``: one recording, named as the folder.

    Raises:
        DataError: if a blurred image has no sharp one, or the other way round.
    """
    name = folder.resolve().name
    return _match(name, folder / blur, folder / sharp) if (folder / blur).is_dir() else []


def image_groups(folder: Path) -> list[list[Path]]:
    """The images right inside ``folder`` and those of each folder in it; groups without are out."""
    groups = [list_images(place) for place in (folder, *_folders(folder))]
    return [group for group in groups if group]


def list_images(folder: Path) -> list[Path]:
    """The image files right inside ``folder``, in the order of their names."""
    return sorted(path for path in folder.iterdir() if is_image_file(path))


def is_image_file(path: Path) -> bool:
    """Whether ``path`` is a file with an image's suffix; hidden ones (`._photo.jpg`) are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _match(recording: str, blurred: Path, sharp: Path) -> list[PairFiles]:
    """Pair the images of two folders by name without suffix; every image must have its partner."""
    if not sharp.is_dir():
        raise DataError(f"{sharp}: no such folder, but {blurred} is there.")
    by_stem = [{file.stem: file for file in list_images(side)} for side in (blurred, sharp)]
    alone = sorted(by_stem[0].keys() ^ by_stem[1].keys())
    if alone:
        side = blurred if alone[0] in by_stem[0] else sharp
        raise DataError(
            f"{side}: {len(alone)} images have no partner, the first is {alone[0]!r}.",
            "blurred and sharp images pair up by file name; complete or remove these.",
        )
    return [PairFiles(recording, by_stem[0][s], by_stem[1][s]) for s in sorted(by_stem[0])]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())
