"""The folder layouts that data sets come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeadapt.errors import DataError
from edgeadapt.training.config import SourceConfig
from edgeadapt.training.images import ImageCache, list_images
from edgeadapt.training.sources import WINDOWS, PairSource, SharpSource, Source, VideoSource

LAYOUTS = {
    "gopro": "<sequence>/blur (or blur_gamma) and <sequence>/sharp, with the same file names",
    "reds": "train_blur/<sequence>/* and train_sharp/<sequence>/*, or val_blur and val_sharp",
    "pairs": "blur/ and sharp/, with the same file names",
    "sharp": "sharp images, right inside the folder or one folder deeper",
    "video": f"{WINDOWS[-1]} frames or more of a fast camera, right inside or one folder deeper",
}


def open_source(config: SourceConfig, root: Path, cache: ImageCache) -> Source:
    """Find the files of one ``[[data.train]]`` or ``[[data.validation]]`` entry below ``root``.

    Raises:
        DataError: naming the folder and the layout expected.
    """
    folder = root / config.path
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.", "give the folder of your data with --data.")
    if config.kind == "sharp":
        files = [file for group in _groups(folder) for file in group]
        if not files:
            raise _wrong_layout(folder, config.kind)
        return SharpSource(files, cache, config.strength)
    if config.kind == "video":
        clips = [group for group in _groups(folder) if len(group) >= WINDOWS[-1]]
        if not clips:
            raise _wrong_layout(folder, config.kind)
        return VideoSource(clips, cache)
    pairs = _READERS[config.kind](folder, config.blur)
    if not pairs:
        raise _wrong_layout(folder, config.kind)
    return PairSource(pairs, cache)


def read_gopro(folder: Path, blur: str) -> list[tuple[Path, Path]]:
    """Pairs of every ``<sequence>``; ``folder`` may be a sequence itself."""
    sequences = [folder, *_folders(folder)]
    return [
        pair for s in sequences if (s / blur).is_dir() for pair in _match(s / blur, s / "sharp")
    ]


def read_reds(folder: Path, _blur: str) -> list[tuple[Path, Path]]:
    """Pairs of every ``<split>_blur/<sequence>`` and ``<split>_sharp/<sequence>``."""
    pairs = []
    for split in ("train", "val"):
        if (folder / f"{split}_blur").is_dir():
            for sequence in _folders(folder / f"{split}_blur"):
                pairs += _match(sequence, folder / f"{split}_sharp" / sequence.name)
    return pairs


def read_pairs(folder: Path, blur: str) -> list[tuple[Path, Path]]:
    """Pairs of ``blur/`` and ``sharp/``."""
    return _match(folder / blur, folder / "sharp") if (folder / blur).is_dir() else []


def _match(blurred: Path, sharp: Path) -> list[tuple[Path, Path]]:
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
    return [(by_stem[0][stem], by_stem[1][stem]) for stem in sorted(by_stem[0])]


def _groups(folder: Path) -> list[list[Path]]:
    groups = [list_images(place) for place in (folder, *_folders(folder))]
    return [group for group in groups if group]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _wrong_layout(folder: Path, kind: str) -> DataError:
    return DataError(f"{folder}: nothing found for kind = {kind!r}.", f"expected {LAYOUTS[kind]}.")


_READERS: dict[str, Callable[[Path, str], list[tuple[Path, Path]]]] = {
    "gopro": read_gopro,
    "reds": read_reds,
    "pairs": read_pairs,
}
