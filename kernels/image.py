"""Frames to network images and back: csrc/image.cpp, bit for bit what `edgeadapt.image` does."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_images, check_size, size_of
from edgeadapt.kernels.tensors import F32, PlaneArgs

U8 = npt.NDArray[np.uint8]
MAX_LEVELS = 6


class ImageInArgs(ctypes.Structure):
    """Of the kernel "image_in"."""

    _fields_ = (
        ("image", ctypes.c_void_p),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("y", PlaneArgs),
        ("levels", PlaneArgs * MAX_LEVELS),
        ("level_count", ctypes.c_int64),
    )


class ImageOutArgs(ctypes.Structure):
    """Of the kernel "image_out"."""

    _fields_ = (
        ("x", PlaneArgs),
        ("image", ctypes.c_void_p),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("not_numbers", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


def image_in(image: U8, y: PlaneArgs, levels: Sequence[PlaneArgs] = ()) -> ImageInArgs:
    """Arguments of a call that turns ``image`` (H, W, 3) into ``y`` (1, 3, H', W') in [-1, 1].

    What is below and to the right of the image is its reflection. ``levels`` are written as well:
    the first with the means of 2x2 pixels of ``y``, the next with those of the first, and so on;
    the sides of y can be halved that often. All are float32.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    height, width, row_stride = _frame("image_in", image)
    images = {"y": y} | {f"level {n}": level for n, level in enumerate(levels, 1)}
    check_images("image_in", images, 3)
    for name, plane in images.items():
        if plane.dtype != F32:
            raise ArrayError(f"image_in: {name} must be float32, got type {plane.dtype}.")
    if y.height < height or y.width < width:
        raise ArrayError(f"image_in: y must be {height}x{width} or larger, got {size_of(y)}.")
    if len(levels) > MAX_LEVELS or (y.height | y.width) % 2 ** len(levels):
        raise ArrayError(
            f"image_in: the sides of y can be halved up to {MAX_LEVELS} times, got {size_of(y)} "
            f"and {len(levels)} levels."
        )
    arguments = ImageInArgs(image.ctypes.data, height, width, row_stride, y)
    arguments.level_count = len(levels)
    for position, level in enumerate(levels):
        factor = 2 ** (position + 1)
        name = f"level {position + 1}"
        check_size("image_in", name, level, y.height // factor, y.width // factor)
        arguments.levels[position] = level
    return arguments


def image_out(x: PlaneArgs, image: U8, not_numbers: npt.NDArray[np.int64]) -> ImageOutArgs:
    """Arguments of a call that writes the upper left of ``x`` (1, 3, H', W') to ``image``.

    ``image`` is (H, W, 3). Values are clamped to [-1, 1] and rounded half to even; how many were
    NaN, which become black, goes to ``not_numbers`` (one element). ``x`` is float32 or bfloat16.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    height, width, row_stride = _frame("image_out", image)
    check_images("image_out", {"x": x}, 3)
    if x.height < height or x.width < width:
        raise ArrayError(f"image_out: x must be {height}x{width} or larger, got {size_of(x)}.")
    if not_numbers.shape != (1,) or not_numbers.dtype != np.int64:
        raise ArrayError(
            f"image_out: not_numbers must be one int64, got {not_numbers.dtype} "
            f"{not_numbers.shape}."
        )
    frame = image.ctypes.data, height, width, row_stride
    return ImageOutArgs(x, *frame, not_numbers.ctypes.data)


def _frame(kernel: str, image: U8) -> tuple[int, int, int]:
    """Check a frame; returns its height, its width and the bytes from row to row."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ArrayError(
            f"{kernel}: image must be uint8 (H, W, 3), got {image.dtype} {image.shape}."
        )
    height, width = image.shape[:2]
    if image.strides[2] != 1 or (width > 1 and image.strides[1] != 3):
        raise ArrayError(
            f"{kernel}: the rows of image must be contiguous, got strides {image.strides}."
        )
    return height, width, image.strides[0]
