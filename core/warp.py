"""Bilinear sampling of a moved and turned image, in numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pose:
    """Where something is at one instant, relative to the middle of the exposure."""

    y_px: float
    x_px: float
    degrees: float  # clockwise on the screen, where y points down

    @property
    def length_px(self) -> float:
        """Distance moved."""
        return math.hypot(self.y_px, self.x_px)


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """First row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right."""
        return self.left + self.width

    @classmethod
    def around(cls, y: float, x: float, extent: float) -> Box:
        """The square of ``extent`` pixels to each side of a point."""
        size = 2 * math.ceil(extent) + 1
        return cls(math.floor(y) - size // 2, math.floor(x) - size // 2, size, size)

    def intersection(self, other: Box) -> Box:
        """The part inside ``other``; height or width is 0 if there is none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Box(top, left, max(0, bottom - top), max(0, right - left))


def sample_moved(
    planes: npt.NDArray[np.float32], box: Box, pose: Pose, centre: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """The pixels of ``box`` after ``planes`` was turned about ``centre`` and moved by ``pose``.

    ``planes`` is (C, H, W), ``centre`` (y, x) in its pixel indices; the result is a
    fresh (C, box.height, box.width). Outside, the nearest pixel of the border counts.
    """
    cosine, sine = math.cos(math.radians(pose.degrees)), math.sin(math.radians(pose.degrees))
    rows = np.arange(box.top, box.bottom, dtype=np.float32)[:, None] - np.float32(
        centre[0] + pose.y_px
    )
    columns = np.arange(box.left, box.right, dtype=np.float32)[None, :] - np.float32(
        centre[1] + pose.x_px
    )
    from_y = np.float32(cosine) * rows - np.float32(sine) * columns + np.float32(centre[0])
    from_x = np.float32(sine) * rows + np.float32(cosine) * columns + np.float32(centre[1])
    return _bilinear(planes, from_y, from_x)


def _bilinear(
    planes: npt.NDArray[np.float32], y: npt.NDArray[np.float32], x: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Read (C, H, W) at the points (y, x), each (h, w): (C, h, w)."""
    height, width = planes.shape[1:]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    # The last row and column are read with weight 1 from the cell before them, so that no tap falls
    # outside.
    top = np.minimum(y.astype(np.intp), max(height - 2, 0))
    left = np.minimum(x.astype(np.intp), max(width - 2, 0))
    y, x = y - top.astype(np.float32), x - left.astype(np.float32)
    taps = top * width + left
    below, right = (width if height > 1 else 0), (1 if width > 1 else 0)
    result = np.empty((planes.shape[0], *y.shape), np.float32)
    for plane, out in zip(planes.reshape(planes.shape[0], -1), result, strict=True):
        upper = _between(plane, taps, right, x)
        lower = _between(plane[below:], taps, right, x)
        lower -= upper
        lower *= y
        np.add(upper, lower, out=out)
    return result


def _between(
    values: npt.NDArray[np.float32],
    taps: npt.NDArray[np.intp],
    right: int,
    x: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """(1 - x) values[taps] + x values[taps + right]."""
    near = values.take(taps, mode="clip")  # nothing is clipped: this mode skips a range check
    far = values[right:].take(taps, mode="clip")
    far -= near
    far *= x
    near += far
    return near
