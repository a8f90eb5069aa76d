"""Resizing by a whole number and its adjoint: numpy, float64, no cleverness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Places(NamedTuple):
    """Which two elements each output is between, and how far it is from the first."""

    low: I64
    high: I64
    fraction: F64


def resize(x: F64, *, mode: str, scale: float, size: Sequence[int]) -> F64:
    """(1, C, H, W) -> (1, C, *size)."""
    for axis, count in zip((2, 3), size, strict=True):
        low, high, fraction = places(count, x.shape[axis], mode, scale)
        along = np.expand_dims(fraction, tuple(range(1, 4 - axis)))
        x = x.take(low, axis) * (1 - along) + x.take(high, axis) * along
    return x


def resize_grad(grad_y: F64, *, mode: str, scale: float, size: Sequence[int]) -> F64:
    """The adjoint: (1, C, H', W') -> (1, C, *size); every output gives back what it took."""
    for axis, count in zip((2, 3), size, strict=True):
        low, high, fraction = places(grad_y.shape[axis], count, mode, scale)
        rows = np.moveaxis(grad_y, axis, 0)
        grad_x = np.zeros((count, *rows.shape[1:]))
        for i in range(len(rows)):
            grad_x[low[i]] += (1 - fraction[i]) * rows[i]
            grad_x[high[i]] += fraction[i] * rows[i]
        grad_y = np.moveaxis(grad_x, 0, axis)
    return grad_y


def places(count: int, size: int, mode: str, scale: float) -> Places:
    """For ``count`` outputs of ``size`` inputs: ONNX's Resize, "half_pixel" or "asymmetric"."""
    if mode == "nearest":
        position = np.floor(np.arange(count) / scale + 1e-6)
    else:
        position = (np.arange(count) + 0.5) / scale - 0.5
    position = position.clip(0, size - 1)
    low = np.floor(position).astype(np.int64)
    return Places(low, (low + 1).clip(0, size - 1), position - low)
