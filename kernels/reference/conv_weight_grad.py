"""The gradient of a convolution in its weight and bias: numpy, float64, no cleverness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def weight_gradient(
    x: F64,
    grad_y: F64,
    *,
    kernel: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> F64:
    """Sum over i, j of ``grad_y[o, i, j] * x[c, i * stride + u * dilation - pad, ...]``.

    ``x`` is (1, C, H, W), zero outside; ``grad_y`` is (1, O, H', W'); ``pads`` begins with top and
    left, what follows does not matter. The result is (O, C / group, *kernel).
    """
    outputs, inputs = grad_y.shape[1] // group, x.shape[1] // group
    weight = np.zeros((grad_y.shape[1], inputs, *kernel))
    for u, v in np.ndindex(*kernel):
        rows = np.arange(grad_y.shape[2]) * strides[0] + u * dilations[0] - pads[0]
        columns = np.arange(grad_y.shape[3]) * strides[1] + v * dilations[1] - pads[1]
        seen = _pixels(x[0], rows, columns)
        for g in range(group):
            o, c = slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs)
            weight[o, :, u, v] = np.einsum("oij,cij->oc", grad_y[0, o], seen[c])
    return weight


def bias_gradient(of: F64) -> F64:
    """Sum over pixels of (1, C, H, W): C numbers."""
    return np.asarray(of.sum(axis=(0, 2, 3)))


def _pixels(x: F64, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> F64:
    """``x[:, rows, columns]``, zero where a row or a column is outside."""
    _, height, width = x.shape
    seen = x[:, rows.clip(0, height - 1)][:, :, columns.clip(0, width - 1)]
    inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    return np.where(inside, seen, 0.0)
