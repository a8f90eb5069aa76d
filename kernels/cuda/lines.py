"""How the threads of csrc/lines.cuh share an image: grids, and how many channels each takes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Final

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import size_of
from edgeadapt.kernels.cuda.launch import MAX_GRID, Extent, Launch, Work
from edgeadapt.kernels.cuda.tensors import DTYPES, ImageArgs

BLOCK: Final[Extent] = (64, 4, 1)  # places of a line, lines
MAX_SIDE: Final = 2**30  # kernels count in int32, twice as far
_BYTES = {DTYPES["f32"]: 4, DTYPES["f16"]: 2, DTYPES["bf16"]: 2}


def channels_last(y: ImageArgs) -> bool:
    """Whether neighbours in memory are neighbouring channels, rather than pixels of a row."""
    if y.channels == 1 or y.width == 1:
        return y.channels > 1
    return abs(y.channel_stride) < abs(y.pixel_stride)


def channels_at_once(images: Iterable[ImageArgs]) -> int:
    """Channels that a thread reads and writes together: 8 or 4 where every image allows it, or 1.

    They are then neighbours in memory, and begin at a multiple of their bytes, or of 16 if they are
    more.
    """
    images = list(images)
    return next((n for n in (8, 4) if all(_allows(image, n) for image in images)), 1)


def over_lines(
    kernel: str, y: ImageArgs, images: Iterable[ImageArgs], args: ctypes.Structure
) -> Work:
    """One launch of ``kernel``, of its variant for as many channels at once as ``images`` allow.

    ``images`` are those that exist, with or without ``y``. The structure ``args`` has a field
    ``channels_last``, which `channels_last` has set.

    Raises:
        ArrayError: if an image is too large to be counted in 32 bits.
    """
    images = [*images, y]
    for image in images:
        if max(image.height, image.width) >= MAX_SIDE:
            raise ArrayError(f"{kernel}: a side must be below 2**30 pixels, got {size_of(image)}.")
    at_once = channels_at_once(images)
    by_channel = at_once > 1 or channels_last(y)
    line = y.width * y.channels // at_once if by_channel else y.width
    lines = y.height if by_channel else y.height * y.channels
    if max(line, lines) >= 2**31:
        raise ArrayError(f"{kernel}: y must have rows below 2**31 elements, got {size_of(y)}.")
    across, down = -(-line // BLOCK[0]), -(-lines // BLOCK[1])
    layers = -(-down // MAX_GRID[1])
    grid = (across, -(-down // layers), layers)
    name = kernel if at_once == 1 else f"{kernel}_by_{at_once}"
    return Work((Launch(name, grid, BLOCK, args),))


def _allows(image: ImageArgs, count: int) -> bool:
    nbytes = _BYTES[image.dtype]
    steps = (image.row_stride, image.pixel_stride)
    return (
        image.channel_stride == 1
        and image.channels % count == 0
        and all(step % count == 0 for step in steps)
        and (image.data or 0) % min(count * nbytes, 16) == 0
    )
