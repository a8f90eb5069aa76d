"""Average and max pooling and their adjoints on CUDA devices: csrc/pool.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from edgeadapt.kernels.checks import check_images, check_positive, check_size
from edgeadapt.kernels.cuda.launch import Work
from edgeadapt.kernels.cuda.lines import channels_last, over_lines
from edgeadapt.kernels.cuda.tensors import ImageArgs

_PAIR = ctypes.c_int64 * 2


class AvgPoolArgs(ctypes.Structure):
    """Of the kernels "avg_pool" and "avg_pool_grad", where x is grad_y."""

    _fields_ = (
        ("x", ImageArgs),
        ("add", ImageArgs),
        ("y", ImageArgs),
        ("kernel", _PAIR),
        ("strides", _PAIR),
        ("pads", _PAIR),
        ("channels_last", ctypes.c_int64),
    )


class MaxPoolArgs(ctypes.Structure):
    """Of the kernels "max_pool" and "max_pool_grad"."""

    _fields_ = (
        ("x", ImageArgs),
        ("grad_y", ImageArgs),
        ("y", ImageArgs),
        ("kernel", _PAIR),
        ("strides", _PAIR),
        ("pads", _PAIR),
        ("dilations", _PAIR),
        ("channels_last", ctypes.c_int64),
    )


def avg_pool(
    x: ImageArgs,
    y: ImageArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    add: ImageArgs | None = None,
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``, the mean of every window of ``x``, plus ``add``.

    What lies outside of x counts as zeros. ``pads`` begins with top and left; the size of ``y``
    settles the others. ``add`` may lie in the same place as ``y``. Each is float32, float16 or
    bfloat16; no ``scratch`` is needed.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _average("avg_pool", x, y, kernel, strides, pads, add)


def avg_pool_grad(
    grad_y: ImageArgs,
    y: ImageArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    add: ImageArgs | None = None,
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``, the adjoint of `avg_pool` at ``grad_y``, plus ``add``.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    return _average("avg_pool_grad", grad_y, y, kernel, strides, pads, add)


def max_pool(
    x: ImageArgs,
    y: ImageArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``, the largest pixel of every window of ``x``.

    Padding never wins, NaN does; a window without a pixel gives minus infinity. ``pads`` as for
    `avg_pool`.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    window = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return _maximum("max_pool", {"x": x, "y": y}, window)


def max_pool_grad(
    grad_y: ImageArgs,
    x: ImageArgs,
    y: ImageArgs,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``: every window's ``grad_y`` to its first largest pixel.

    First: row by row from the upper left. Of several NaN the last one gets it.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    window = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return _maximum("max_pool_grad", {"grad_y": grad_y, "x": x, "y": y}, window)


def _average(
    name: str,
    x: ImageArgs,
    y: ImageArgs,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    add: ImageArgs | None,
) -> Work:
    source = "x" if name == "avg_pool" else "grad_y"
    images = {source: x, "y": y} | ({} if add is None else {"add": add})
    check_images(name, images, x.channels)
    if add is not None:
        check_size(name, "add", add, y.height, y.width)
    check_positive(name, {"kernel": kernel, "strides": strides})
    window = _PAIR(*kernel), _PAIR(*strides), _PAIR(*pads[:2])
    args = AvgPoolArgs(x, add or ImageArgs(), y, *window, channels_last(y))
    return over_lines(name, y, images.values(), args)


def _maximum(
    name: str, images: Mapping[str, ImageArgs], window: Mapping[str, Sequence[int]]
) -> Work:
    x, y = images["x"], images["y"]
    check_images(name, images, x.channels)
    if "grad_y" in images:
        check_size(name, "y", y, x.height, x.width)
    check_positive(name, {key: window[key] for key in ("kernel", "strides", "dilations")})
    pairs = (_PAIR(*window[key][:2]) for key in ("kernel", "strides", "pads", "dilations"))
    args = MaxPoolArgs(x, images.get("grad_y", ImageArgs()), y, *pairs, channels_last(y))
    return over_lines(name, y, images.values(), args)
