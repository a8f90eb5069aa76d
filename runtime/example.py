"""Pictures of one real pair: what came in, what came out, what is true, and a part of each 1:1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgeadapt.errors import ImageError
from edgeadapt.runtime.session import U8

SIDE = 320  # pixels: width of a panel, and side of the square shown 1:1 below it
_GAP, _CAPTION = 8, 24


def busiest_square(blurred: U8, sharp: U8, side: int) -> tuple[int, int]:
    """Top and left of the square of ``side`` pixels where the two images differ most in sum.

    That is where there is something to restore. Of equal squares it is the first.

    Raises:
        ImageError: if the images differ in size or are smaller than the square.
    """
    if blurred.shape != sharp.shape or min(sharp.shape[:2]) < side:
        raise ImageError(
            f"the blurred image is {_size(blurred)}, the sharp one {_size(sharp)}.",
            f"both must have one size, and {side} pixels at least in each direction.",
        )
    difference = np.abs(blurred.astype(np.int64) - sharp).sum(axis=2)
    # sums[y, x] is the sum of all above and to the left of (y, x)
    sums = np.pad(difference.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left)


def example_strip(images: Sequence[U8], captions: Sequence[str], corner: tuple[int, int]) -> U8:
    """The images side by side, uint8 (H, W, 3): caption, whole image, and a square of it 1:1.

    ``corner`` is the top and left of the square of `SIDE` pixels. The whole image is scaled to a
    panel's width; the square is not scaled, and shows every pixel as it is.
    """
    height, width = images[0].shape[:2]
    small = max(1, round(height * SIDE / width))
    total = (len(images) * (SIDE + _GAP) - _GAP, _CAPTION + small + _GAP + SIDE)
    canvas = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=16)
    top, left = corner
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = index * (SIDE + _GAP)
        draw.text((x + 2, 2), caption, fill="black", font=font)
        whole = Image.fromarray(image).resize((SIDE, small), Image.Resampling.LANCZOS)
        canvas.paste(whole, (x, _CAPTION))
        square = np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])
        canvas.paste(Image.fromarray(square), (x, _CAPTION + small + _GAP))
    return np.asarray(canvas)


def _size(image: U8) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
