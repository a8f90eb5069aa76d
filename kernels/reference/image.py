"""Frames to network images and back: numpy, no cleverness."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


def image_in(image: U8, height: int, width: int, levels: int = 0) -> list[F64]:
    """(1, 3, height, width) in [-1, 1] and ``levels`` of means of 2x2 pixels of the one before.

    Below and to the right the image is continued by its reflection, the edge itself once.
    """
    rows, columns = (
        [_bounced(i, size) for i in range(padded)]
        for size, padded in zip(image.shape[:2], (height, width), strict=True)
    )
    planes = image[rows][:, columns].transpose(2, 0, 1)[None] / 127.5 - 1.0
    found: list[Any] = [planes]
    for _ in range(levels):
        planes = (planes[..., ::2] + planes[..., 1::2]) / 2
        planes = (planes[:, :, ::2] + planes[:, :, 1::2]) / 2
        found.append(planes)
    return found


def image_out(x: npt.NDArray[np.float32], height: int, width: int) -> U8:
    """(height, width, 3) of (1, 3, H, W), clamped, rounded half to even; NaN becomes 0.

    In float32: whether a value lies at half a level is a matter of its last bit.
    """
    levels = (x[0, :, :height, :width] + np.float32(1)) * np.float32(127.5)
    levels = np.where(np.isnan(levels), np.float32(0), np.rint(levels)).clip(0, 255)
    return levels.astype(np.uint8).transpose(1, 2, 0)


def _bounced(i: int, size: int) -> int:
    """Walk from 0 to ``i``, turning round at both ends."""
    place, step = 0, 1
    for _ in range(i):
        if size > 1 and not 0 <= place + step < size:
            step = -step
        place += step if size > 1 else 0
    return place
