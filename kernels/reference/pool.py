"""Pooling and its adjoints: numpy, float64, no cleverness.

Images are (1, C, H, W), windows (kernel, strides, pads, dilations) with ``pads`` above and to the
left; ``size`` is the result's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Window(NamedTuple):
    """A window's output pixel and the input pixels that it holds."""

    i: int
    j: int
    rows: I64
    columns: I64


def avg_pool(
    x: F64,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    size: Sequence[int],
) -> F64:
    """The mean of every window; what is outside of x counts as zeros."""
    y = np.empty((1, x.shape[1], *size))
    for i, j, rows, columns in windows(x.shape[2:], size, kernel, strides, pads, (1, 1)):
        y[:, :, i, j] = x[:, :, rows, columns].sum(axis=(2, 3)) / (kernel[0] * kernel[1])
    return y


def avg_pool_grad(
    grad_y: F64,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    size: Sequence[int],
) -> F64:
    """The adjoint: its share of every window's ``grad_y`` to each pixel."""
    grad_x = np.zeros((1, grad_y.shape[1], *size))
    for i, j, rows, columns in windows(size, grad_y.shape[2:], kernel, strides, pads, (1, 1)):
        share = grad_y[:, :, i, j] / (kernel[0] * kernel[1])
        grad_x[:, :, rows, columns] += share[:, :, None, None]
    return grad_x


def max_pool(
    x: F64,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    size: Sequence[int],
) -> F64:
    """The largest pixel of every window; minus infinity where there is none."""
    y = np.empty((1, x.shape[1], *size))
    for i, j, rows, columns in windows(x.shape[2:], size, kernel, strides, pads, dilations):
        y[:, :, i, j] = x[:, :, rows, columns].max(axis=(2, 3), initial=-np.inf)
    return y


def max_pool_grad(
    grad_y: F64,
    x: F64,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> F64:
    """Give every window's ``grad_y`` to its largest pixel; row by row, the first of several."""
    grad_x = np.zeros(x.shape)
    outputs = grad_y.shape[2:]
    for i, j, rows, columns in windows(x.shape[2:], outputs, kernel, strides, pads, dilations):
        for channel in range(x.shape[1]):
            seen = x[0, channel, rows, columns]
            if seen.size:
                u, v = np.unravel_index(seen.argmax(), seen.shape)  # the first of several
                grad_x[0, channel, rows[u, 0], columns[0, v]] += grad_y[0, channel, i, j]
    return grad_x


def windows(
    inputs: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Iterator[Window]:
    """Every window, and those of its pixels that are in the image."""
    for i, j in np.ndindex(*outputs):
        inside: list[Any] = []
        for axis, start in enumerate((i, j)):
            taps = start * strides[axis] + np.arange(kernel[axis]) * dilations[axis] - pads[axis]
            inside.append(taps[(taps >= 0) & (taps < inputs[axis])])
        yield Window(i, j, *np.ix_(*inside))
