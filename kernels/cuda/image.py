"""Frames to network images and back: csrc/image.cu, bit for bit what `edgeadapt.image` does."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_images, check_size, size_of
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import ImageArgs
from edgeadapt.kernels.image import MAX_LEVELS

U8 = npt.NDArray[np.uint8]
_CHANNELS = 3
_THREADS = 256
_SIDE = 32  # of a block's tile
_LEVELS_OF_TILE = 5
_GROUP = 4  # pixels of a frame that one thread writes
_SCRATCH_ALIGNMENT = 256


class FrameArgs(ctypes.Structure):
    """`Frame` of csrc/image.cu: bytes (H, W, 3) whose rows are contiguous.

    Words are moved where ``data`` and ``row_stride``, in bytes, are multiples of 4.
    """

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
    )

    @classmethod
    def of(cls, image: U8) -> FrameArgs:
        """The frame that ``image`` is.

        Raises:
            ArrayError: if it is not uint8 (H, W, 3) with contiguous rows.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != _CHANNELS:
            raise ArrayError(f"a frame must be uint8 (H, W, 3), got {image.dtype} {image.shape}.")
        height, width = image.shape[:2]
        if image.strides[2] != 1 or (width > 1 and image.strides[1] != _CHANNELS):
            raise ArrayError(
                f"the rows of a frame must be contiguous, got strides {image.strides}."
            )
        return cls(image.ctypes.data, height, width, image.strides[0])


class ImageInArgs(ctypes.Structure):
    """`ImageInArgs` of csrc/image.cu."""

    _fields_ = (
        ("frame", FrameArgs),
        ("y", ImageArgs),
        ("levels", ImageArgs * MAX_LEVELS),
        ("level_count", ctypes.c_int64),
    )


class ImageHalfArgs(ctypes.Structure):
    """`ImageHalfArgs` of csrc/image.cu."""

    _fields_ = (("x", ImageArgs), ("y", ImageArgs))


class ImageOutArgs(ctypes.Structure):
    """`ImageOutArgs` of csrc/image.cu."""

    _fields_ = (
        ("x", ImageArgs),
        ("frame", FrameArgs),
        ("blocks", ctypes.c_int64),
        ("not_numbers", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


def image_in(
    frame: FrameArgs, y: ImageArgs, levels: Sequence[ImageArgs] = (), *, scratch: int = 0
) -> Work:
    """Turn ``frame`` (H, W, 3) into ``y`` (1, 3, H', W') in [-1, 1], written with ``=``.

    What is below and to the right of the frame is its reflection. ``levels`` are written as well:
    the first with the means of 2x2 pixels of ``y``, the next with those of the first, and so on,
    as avg_pool gives them from what the one before holds; the sides of y can be halved that often.
    Float32, float16 or bfloat16 in any layout.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    _check_frame("image_in", frame)
    images = {"y": y} | {f"level {n}": level for n, level in enumerate(levels, 1)}
    check_images("image_in", images, _CHANNELS)
    if y.height < frame.height or y.width < frame.width:
        raise ArrayError(
            f"image_in: y must be {frame.height}x{frame.width} or larger, got {size_of(y)}."
        )
    if len(levels) > MAX_LEVELS or (y.height | y.width) % 2 ** len(levels):
        raise ArrayError(
            f"image_in: the sides of y can be halved up to {MAX_LEVELS} times, got {size_of(y)} "
            f"and {len(levels)} levels."
        )
    for n, level in enumerate(levels, 1):
        check_size("image_in", f"level {n}", level, y.height >> n, y.width >> n)
    arguments = ImageInArgs(frame, y, level_count=len(levels))
    arguments.levels[: len(levels)] = levels
    tiles = -(-y.height // _SIDE) * -(-y.width // _SIDE)
    launches = [Launch("image_in", (tiles, 1, 1), (_THREADS, 1, 1), arguments)]
    launches += [_half(levels[n - 1], levels[n]) for n in range(_LEVELS_OF_TILE, len(levels))]
    return Work(tuple(launches))


def image_out(x: ImageArgs, frame: FrameArgs, not_numbers: int, *, scratch: int = 0) -> Work:
    """Write the upper left of ``x`` (1, 3, H', W') to ``frame`` (H, W, 3).

    Values are clamped to [-1, 1] and rounded half to even; how many were NaN, which become black,
    goes to the address ``not_numbers``, as int64. ``x`` is float32, float16 or bfloat16 in any
    layout.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    _check_frame("image_out", frame)
    check_images("image_out", {"x": x}, _CHANNELS)
    if x.height < frame.height or x.width < frame.width:
        raise ArrayError(
            f"image_out: x must be {frame.height}x{frame.width} or larger, got {size_of(x)}."
        )
    if not not_numbers or not_numbers % 8:
        raise ArrayError(
            f"image_out: not_numbers must be the address of an int64, got {not_numbers:#x}."
        )
    blocks = -(-frame.height * -(-frame.width // _GROUP) // _THREADS)
    arguments = ImageOutArgs(x, frame, blocks, not_numbers, scratch)
    launches = (
        Launch("image_out", (blocks, 1, 1), (_THREADS, 1, 1), arguments),
        Launch("image_out_count", (1, 1, 1), (_THREADS, 1, 1), arguments),
    )
    return Work(launches, -(-8 * blocks // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT)


def _half(x: ImageArgs, y: ImageArgs) -> Launch:
    blocks = -(-y.height * y.width // _THREADS)
    return Launch("image_half", (blocks, 1, 1), (_THREADS, 1, 1), ImageHalfArgs(x, y))


def _check_frame(kernel: str, frame: FrameArgs) -> None:
    if min(frame.height, frame.width) < 1:
        raise ArrayError(f"{kernel}: frame must have pixels, got {frame.height}x{frame.width}.")
    if abs(frame.row_stride) < _CHANNELS * frame.width and frame.height > 1:
        raise ArrayError(
            f"{kernel}: the rows of frame must not overlap, got {frame.width} pixels in "
            f"{frame.row_stride} bytes."
        )
