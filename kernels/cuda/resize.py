"""Resizing by a whole number and its adjoint on CUDA devices: csrc/resize.cu."""

from __future__ import annotations

import ctypes

from edgeadapt.kernels.cuda.launch import Work
from edgeadapt.kernels.cuda.lines import channels_last, over_lines
from edgeadapt.kernels.cuda.tensors import ImageArgs
from edgeadapt.kernels.resize import check_resize


class ResizeArgs(ctypes.Structure):
    """Of the kernels "resize" and "resize_grad"."""

    _fields_ = (
        ("x", ImageArgs),
        ("add", ImageArgs),
        ("y", ImageArgs),
        ("factor", ctypes.c_int64),
        ("enlarge", ctypes.c_int64),
        ("linear", ctypes.c_int64),
        ("channels_last", ctypes.c_int64),
    )


def resize(
    x: ImageArgs,
    y: ImageArgs,
    *,
    mode: str,
    scale: float,
    add: ImageArgs | None = None,
    scratch: int = 0,
) -> Work:
    """Launches that write ``y = resized(x) + add`` with ``=``; they need no ``scratch``.

    ``scale`` n enlarges, 1 / n reduces. "linear" has half-pixel centres and repeats the edge,
    "nearest" takes pixel i // n, or i * n of a reduction; what is left over of x is not read.
    ``add`` may lie in the same place as ``y``. Each is float32, float16 or bfloat16.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _work("resize", (x, "x"), (y, "y"), (x, y), mode, scale, add)


def resize_grad(
    grad_y: ImageArgs,
    y: ImageArgs,
    *,
    mode: str,
    scale: float,
    add: ImageArgs | None = None,
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``, the adjoint of `resize` at ``grad_y``, plus ``add``.

    ``mode`` and ``scale`` are the resize's; pixels that it left out get 0.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _work("resize_grad", (grad_y, "grad_y"), (y, "y"), (y, grad_y), mode, scale, add)


def _work(
    kernel: str,
    source: tuple[ImageArgs, str],
    target: tuple[ImageArgs, str],
    forward: tuple[ImageArgs, ImageArgs],
    mode: str,
    scale: float,
    add: ImageArgs | None,
) -> Work:
    x, y = source[0], target[0]
    images = {source[1]: x, target[1]: y} | ({} if add is None else {"add": add})
    factor, enlarge = check_resize(kernel, images, x.channels, forward, mode, scale)
    linear = mode == "linear"
    args = ResizeArgs(x, add or ImageArgs(), y, factor, enlarge, linear, channels_last(y))
    return over_lines(kernel, y, images.values(), args)
