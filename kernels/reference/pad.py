"""Padding and its adjoint: numpy, no cleverness; any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]


def pad(x: Array, *, pads: Sequence[int], mode: str, value: float = 0.0) -> Array:
    """What is added at the beginning of every axis, then at the end; negative: what is cut off."""
    for axis in range(x.ndim):
        size = x.shape[axis]
        index = np.arange(-pads[axis], size + pads[axis + x.ndim])
        outside = (index < 0) | (index >= size)
        x = x.take(sources(index, size, mode), axis)
        if mode == "constant":
            np.moveaxis(x, axis, 0)[outside] = value
    return x


def pad_grad(grad_y: Array, *, pads: Sequence[int], mode: str) -> Array:
    """The adjoint of "reflect" and "edge": what was copied is added to where it came from."""
    for axis in range(grad_y.ndim):
        begin, end = pads[axis], pads[axis + grad_y.ndim]
        rows = np.moveaxis(grad_y, axis, 0)
        size = len(rows) - begin - end
        grad_x = np.zeros((size, *rows.shape[1:]))
        index = sources(np.arange(len(rows)) - begin, size, mode)
        for row, source in zip(rows, index, strict=True):
            grad_x[source] += row
        grad_y = np.moveaxis(grad_x, 0, axis)
    return grad_y


def sources(index: I64, size: int, mode: str) -> I64:
    """Which of ``size`` elements stands at each index; for a constant the nearest one."""
    if mode == "reflect":
        return np.where(index < size, np.abs(index), 2 * (size - 1) - index)
    return index.clip(0, size - 1)
