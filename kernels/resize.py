"""Resizing by a whole number and its adjoint: csrc/resize.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_images, check_size, size_of
from edgeadapt.kernels.tensors import ImageBase, PlaneArgs

MODES = ("linear", "nearest")


class ResizeArgs(ctypes.Structure):
    """Of the kernels "resize" and "resize_grad"."""

    _fields_ = (
        ("x", PlaneArgs),
        ("add", PlaneArgs),
        ("y", PlaneArgs),
        ("factor", ctypes.c_int64),
        ("enlarge", ctypes.c_int64),
        ("linear", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
    )


def resize(
    x: PlaneArgs, y: PlaneArgs, *, mode: str, scale: float, add: PlaneArgs | None = None
) -> ResizeArgs:
    """Arguments of a call that writes ``y = resized(x) + add`` with ``=``.

    ``scale`` n enlarges, 1 / n reduces. "linear" has half-pixel centres and repeats the edge,
    "nearest" takes pixel i // n, or i * n of a reduction; what is left over of x is not read.
    ``add`` may lie in the same place as ``y``. Each is float32 or bfloat16.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _arguments("resize", (x, "x"), (y, "y"), (x, y), mode, scale, add)


def resize_grad(
    grad_y: PlaneArgs, y: PlaneArgs, *, mode: str, scale: float, add: PlaneArgs | None = None
) -> ResizeArgs:
    """Arguments of a call that writes ``y``, the adjoint of `resize` at ``grad_y``, plus ``add``.

    ``mode`` and ``scale`` are the resize's; pixels that it left out get 0.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _arguments("resize_grad", (grad_y, "grad_y"), (y, "y"), (y, grad_y), mode, scale, add)


def _arguments(
    kernel: str,
    source: tuple[PlaneArgs, str],
    target: tuple[PlaneArgs, str],
    forward: tuple[PlaneArgs, PlaneArgs],
    mode: str,
    scale: float,
    add: PlaneArgs | None,
) -> ResizeArgs:
    x, y = source[0], target[0]
    images = {source[1]: x, target[1]: y} | ({} if add is None else {"add": add})
    factor, enlarge = check_resize(kernel, images, x.channels, forward, mode, scale)
    return ResizeArgs(x, add or PlaneArgs(), y, factor, enlarge, mode == "linear")


def check_resize(
    kernel: str,
    images: Mapping[str, ImageBase],
    channels: int,
    forward: tuple[ImageBase, ImageBase],
    mode: str,
    scale: float,
) -> tuple[int, bool]:
    """Raise an `ArrayError` unless ``forward``, before and after, and ``add`` fit together.

    Returns the whole number, and whether it enlarges.
    """
    if mode not in MODES:
        raise ArrayError(f"{kernel}: mode must be one of {', '.join(MODES)}, got {mode!r}.")
    check_images(kernel, images, channels)
    if "add" in images:
        check_size(kernel, "add", images["add"], images["y"].height, images["y"].width)
    factor, enlarge = whole_factor(kernel, scale)
    before, after = forward
    for small, large in ((before.height, after.height), (before.width, after.width)):
        if not fits(small, large, factor, enlarge, mode):
            raise ArrayError(
                f"{kernel}: {size_of(before)} resized by {scale:g} ({mode}) cannot be "
                f"{size_of(after)}."
            )
    return factor, enlarge


def whole_factor(kernel: str, scale: float) -> tuple[int, bool]:
    """The whole number, and whether it enlarges.

    Raises:
        ArrayError: if ``scale`` is neither n nor 1 / n.
    """
    enlarge = scale >= 1
    factor = round(scale if enlarge else 1 / scale) if scale > 0 else 0
    if factor < 1 or abs((scale if enlarge else 1 / scale) - factor) > 1e-4 * factor:
        raise ArrayError(f"{kernel}: scale must be n or 1 / n with a whole n, got {scale:g}.")
    return factor, enlarge


def fits(before: int, after: int, factor: int, enlarge: bool, mode: str) -> bool:
    """Whether a side of ``before`` pixels can be resized to one of ``after``."""
    if enlarge:
        return after == before * factor
    # A slice with a step, which "nearest" is, may take a pixel of an incomplete last block.
    return after == before // factor or (mode == "nearest" and after == -(-before // factor))
