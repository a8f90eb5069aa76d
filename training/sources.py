"""Where training pairs come from: real pairs, blurred photos, averaged fast video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeadapt.blur import Pair, average_frames, draw_parameters, synthesize_blur
from edgeadapt.errors import DataError
from edgeadapt.training.images import ImageCache

Frame = npt.NDArray[np.uint8]
# Frames averaged to one blurred frame; GoPro used 7 to 13 (Nah et al. 2017).
WINDOWS = (7, 9, 11, 13)
# Pixels kept around a crop for the blur to move in; beyond them the crop is mirrored.
LARGEST_MARGIN = 32


class Source(Protocol):
    """Gives aligned pairs of frames. Both methods are pure functions of their arguments."""

    def __len__(self) -> int: ...

    def crop(self, rng: np.random.Generator, size: int) -> Pair:
        """A random pair, each (size, size, 3)."""

    def fixed(self, index: int, size: int) -> Pair:
        """The middle of pair ``index``, at most (size, size, 3) each: for validation."""


class PairSource:
    """Real pairs: files with a blurred and a sharp image of the same size."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], cache: ImageCache) -> None:
        self._pairs, self._cache = pairs, cache

    def __len__(self) -> int:
        return len(self._pairs)

    def crop(self, rng: np.random.Generator, size: int) -> Pair:
        """A random square of a random pair."""
        pair = self._load(int(rng.integers(len(self._pairs))))
        window = random_window(rng, pair.sharp.shape, size, self._pairs[0][1].parent)
        return Pair(pair.blurred[window], pair.sharp[window])

    def fixed(self, index: int, size: int) -> Pair:
        """The middle of pair ``index``."""
        pair = self._load(index)
        window = middle_window(pair.sharp.shape, size)
        return Pair(pair.blurred[window], pair.sharp[window])

    def _load(self, index: int) -> Pair:
        blurred_path, sharp_path = self._pairs[index]
        blurred, sharp = self._cache.read(blurred_path), self._cache.read(sharp_path)
        if blurred.shape != sharp.shape:
            raise DataError(
                f"{blurred_path}: is {blurred.shape[1]}x{blurred.shape[0]}, "
                f"its sharp image {sharp_path} is {sharp.shape[1]}x{sharp.shape[0]}.",
                "both images of a pair must have the same size; remove or replace this pair.",
            )
        return Pair(blurred, sharp)


class SharpSource:
    """Sharp photos, blurred anew for every crop: the crop and a margin, not the whole photo."""

    def __init__(self, files: Sequence[Path], cache: ImageCache, strength: float = 1.0) -> None:
        self._files, self._cache, self._strength = files, cache, strength

    def __len__(self) -> int:
        return len(self._files)

    def crop(self, rng: np.random.Generator, size: int) -> Pair:
        """A random square of a random photo, blurred with parameters drawn from ``rng``."""
        file = self._files[int(rng.integers(len(self._files)))]
        sharp = self._cache.read(file)
        parameters = draw_parameters(int(rng.integers(2**63)), self._strength)
        room = (min(sharp.shape[:2]) - size) // 2
        margin = max(0, min(room, parameters.reach_px(size, size), LARGEST_MARGIN))
        window = random_window(rng, sharp.shape, size + 2 * margin, file)
        return synthesize_blur(sharp[window], parameters, margin)

    def fixed(self, index: int, size: int) -> Pair:
        """The middle of photo ``index``, blurred with the parameters of seed ``index``."""
        sharp = self._cache.read(self._files[index])
        return synthesize_blur(
            sharp[middle_window(sharp.shape, size)], draw_parameters(index, self._strength)
        )


class VideoSource:
    """Fast video: the mean of 7 to 13 consecutive frames is blurred, the middle one is sharp."""

    def __init__(self, clips: Sequence[Sequence[Path]], cache: ImageCache) -> None:
        self._cache = cache
        # one entry a possible middle frame, so that long clips count by their length
        self._middles = [
            (clip, i)
            for clip in clips
            for i in range(WINDOWS[-1] // 2, len(clip) - WINDOWS[-1] // 2)
        ]

    def __len__(self) -> int:
        return len(self._middles)

    def crop(self, rng: np.random.Generator, size: int) -> Pair:
        """A random square of a random moment, averaged over a random number of frames."""
        clip, middle = self._middles[int(rng.integers(len(self._middles)))]
        window = random_window(rng, self._cache.read(clip[middle]).shape, size, clip[middle].parent)
        return self._average(clip, middle, int(rng.choice(WINDOWS)), window)

    def fixed(self, index: int, size: int) -> Pair:
        """The middle of moment ``index``, averaged over 11 frames as most of the GoPro set is."""
        clip, middle = self._middles[index]
        window = middle_window(self._cache.read(clip[middle]).shape, size)
        return self._average(clip, middle, 11, window)

    def _average(
        self, clip: Sequence[Path], middle: int, count: int, window: tuple[slice, slice]
    ) -> Pair:
        files = clip[middle - count // 2 : middle + count // 2 + 1]
        frames = [self._cache.read(file)[window] for file in files]
        return Pair(average_frames(frames), frames[count // 2])


def random_window(
    rng: np.random.Generator, shape: tuple[int, ...], size: int, what: Path
) -> tuple[slice, slice]:
    """A random square inside an image of ``shape`` (H, W, ...).

    Raises:
        DataError: naming ``what`` if the image is smaller than the square.
    """
    if min(shape[:2]) < size:
        raise DataError(
            f"{what}: a crop of {size} pixels does not fit in {shape[1]}x{shape[0]}.",
            "set a smaller data.crop, or leave small images out.",
        )
    top, left = (int(rng.integers(length - size + 1)) for length in shape[:2])
    return slice(top, top + size), slice(left, left + size)


def middle_window(shape: tuple[int, ...], size: int) -> tuple[slice, slice]:
    """The middle of an image of ``shape`` (H, W, ...), at most ``size`` high and wide."""
    sizes = [min(length, size) for length in shape[:2]]
    tops = [(length - part) // 2 for length, part in zip(shape[:2], sizes, strict=True)]
    return slice(tops[0], tops[0] + sizes[0]), slice(tops[1], tops[1] + sizes[1])
