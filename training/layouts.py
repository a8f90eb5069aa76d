"""From an entry of the configuration to a source of pairs."""

from __future__ import annotations

from pathlib import Path

from edgeadapt import layouts
from edgeadapt.errors import DataError
from edgeadapt.layouts import PairFiles, image_groups
from edgeadapt.training.config import SourceConfig
from edgeadapt.training.images import ImageCache
from edgeadapt.training.sources import WINDOWS, PairSource, SharpSource, Source, VideoSource

LAYOUTS = {
    **layouts.LAYOUTS,
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
        files = [file for group in image_groups(folder) for file in group]
        if not files:
            raise _wrong_layout(folder, config.kind)
        return SharpSource(files, cache, config.strength)
    if config.kind == "video":
        clips = [group for group in image_groups(folder) if len(group) >= WINDOWS[-1]]
        if not clips:
            raise _wrong_layout(folder, config.kind)
        return VideoSource(clips, cache)
    pairs = _read(folder, config)
    if not pairs:
        raise _wrong_layout(folder, config.kind)
    return PairSource([(pair.blurred, pair.sharp) for pair in pairs], cache)


def _read(folder: Path, config: SourceConfig) -> list[PairFiles]:
    if config.kind == "reds":
        return layouts.read_reds(folder)
    reader = layouts.read_gopro if config.kind == "gopro" else layouts.read_pairs
    return reader(folder, config.blur)


def _wrong_layout(folder: Path, kind: str) -> DataError:
    return DataError(f"{folder}: nothing found for kind = {kind!r}.", f"expected {LAYOUTS[kind]}.")
