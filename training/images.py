"""Decoded frames, kept in memory up to a limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from edgeadapt.errors import DataError


class ImageCache:
    """Reads images as uint8 (H, W, 3) RGB and keeps the last used ``megabytes`` of them.

    The arrays are read-only, because every caller gets the same one. Safe to use from several
    threads.
    """

    def __init__(self, megabytes: int) -> None:
        self._limit_bytes = megabytes * 2**20
        self._held_bytes = 0
        self._frames: OrderedDict[Path, npt.NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        """Another process gets an empty one of the same size."""
        return ImageCache, (self._limit_bytes // 2**20,)

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """The image in ``path``.

        Raises:
            DataError: if it is not an image.
        """
        with self._lock:
            if path in self._frames:
                self._frames.move_to_end(path)
                return self._frames[path]
        frame = _decode(path)
        with self._lock:
            if path not in self._frames:
                self._frames[path] = frame
                self._held_bytes += frame.nbytes
            while self._held_bytes > self._limit_bytes and len(self._frames) > 1:
                self._held_bytes -= self._frames.popitem(last=False)[1].nbytes
        return frame


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            frame = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"{path}: not an image that can be read ({error}).") from error
    frame.setflags(write=False)
    return frame
