"""Average and max pooling and their adjoints: csrc/pool.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_images, check_positive, check_size
from edgeadapt.kernels.tensors import PlaneArgs

_PAIR = ctypes.c_int64 * 2


class AvgPoolArgs(ctypes.Structure):
    """Of the kernels "avg_pool" and "avg_pool_grad", where x is grad_y."""

    _fields_ = (
        ("x", PlaneArgs),
        ("add", PlaneArgs),
        ("y", PlaneArgs),
        ("kernel", _PAIR),
        ("strides", _PAIR),
        ("pads", _PAIR),
        ("scratch", ctypes.c_void_p),
    )


class MaxPoolArgs(ctypes.Structure):
    """Of the kernels "max_pool" and "max_pool_grad"."""

    _fields_ = (
        ("x", PlaneArgs),
        ("grad_y", PlaneArgs),
        ("y", PlaneArgs),
        ("kernel", _PAIR),
        ("strides", _PAIR),
        ("pads", _PAIR),
        ("dilations", _PAIR),
        ("scratch", ctypes.c_void_p),
    )


def avg_pool(
    x: PlaneArgs,
    y: PlaneArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    add: PlaneArgs | None = None,
) -> AvgPoolArgs:
    """Arguments of a call that writes ``y``, the mean of every window of ``x``, plus ``add``.

    What lies outside of x counts as zeros. ``pads`` begins with top and left; the size of ``y``
    settles the others. ``add`` may lie in the same place as ``y``. Each is float32 or bfloat16.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _average("avg_pool", x, y, kernel, strides, pads, add)


def avg_pool_grad(
    grad_y: PlaneArgs,
    y: PlaneArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    add: PlaneArgs | None = None,
) -> AvgPoolArgs:
    """Arguments of a call that writes ``y``, the adjoint of `avg_pool` at ``grad_y``, plus ``add``.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _average("avg_pool_grad", grad_y, y, kernel, strides, pads, add)


def max_pool(
    x: PlaneArgs,
    y: PlaneArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
) -> MaxPoolArgs:
    """Arguments of a call that writes ``y``, the largest pixel of every window of ``x``.

    Padding never wins, NaN does; a window without a pixel gives minus infinity. ``pads`` as for
    `avg_pool`.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    check_images("max_pool", {"x": x, "y": y}, x.channels)
    check_positive("max_pool", {"kernel": kernel, "strides": strides, "dilations": dilations})
    window = _PAIR(*kernel), _PAIR(*strides), _PAIR(*pads[:2]), _PAIR(*dilations)
    return MaxPoolArgs(x, PlaneArgs(), y, *window)


def max_pool_grad(
    grad_y: PlaneArgs,
    x: PlaneArgs,
    y: PlaneArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
) -> MaxPoolArgs:
    """Arguments of a call that writes ``y``: every window's ``grad_y`` to its first largest pixel.

    First: row by row from the upper left.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    check_images("max_pool_grad", {"grad_y": grad_y, "x": x, "y": y}, x.channels)
    check_size("max_pool_grad", "y", y, x.height, x.width)
    check_positive("max_pool_grad", {"kernel": kernel, "strides": strides, "dilations": dilations})
    if x.height * x.width >= 2**31:
        raise ArrayError(f"max_pool_grad: x must be below 2**31 pixels, got {x.height}x{x.width}.")
    window = _PAIR(*kernel), _PAIR(*strides), _PAIR(*pads[:2]), _PAIR(*dilations)
    return MaxPoolArgs(x, grad_y, y, *window)


def _average(
    name: str,
    x: PlaneArgs,
    y: PlaneArgs,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    add: PlaneArgs | None,
) -> AvgPoolArgs:
    source = "x" if name == "avg_pool" else "grad_y"
    images = {source: x, "y": y} | ({} if add is None else {"add": add})
    check_images(name, images, x.channels)
    if add is not None:
        check_size(name, "add", add, y.height, y.width)
    check_positive(name, {"kernel": kernel, "strides": strides})
    window = _PAIR(*kernel), _PAIR(*strides), _PAIR(*pads[:2])
    return AvgPoolArgs(x, add or PlaneArgs(), y, *window)
