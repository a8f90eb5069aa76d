"""Convolution, transposed convolution and what may follow them: numpy, float64, no cleverness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def conv(
    x: F64,
    weight: F64,
    size: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    transposed: bool = False,
) -> F64:
    """Convolve ``x`` (1, C, H, W) to (1, O, *size); what lies outside of x is zero.

    ``weight`` is (O, C / group, kh, kw), or transposed (C, O / group, kh, kw). Output pixel i sees
    input pixel i * stride + u * dilation - pad through tap u; transposed it is the other way round.
    ``pads`` begins with top and left, what follows does not matter.
    """
    if transposed:
        inputs, outputs = weight.shape[0] // group, weight.shape[1]
    else:
        inputs, outputs = weight.shape[1], weight.shape[0] // group
    y = np.zeros((1, outputs * group, *size))
    for u, v in np.ndindex(*weight.shape[2:]):
        down = (strides[0], u * dilations[0] - pads[0])
        right = (strides[1], v * dilations[1] - pads[1])
        for g in range(group):
            o, c = slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs)
            matrix = weight[c, :, u, v].T if transposed else weight[o, :, u, v]
            if transposed:
                i, y_rows = _pairs(x.shape[2], size[0], *down)
                j, y_columns = _pairs(x.shape[3], size[1], *right)
            else:
                y_rows, i = _pairs(size[0], x.shape[2], *down)
                y_columns, j = _pairs(size[1], x.shape[3], *right)
            seen = np.einsum("oc,cij->oij", matrix, x[0, c][:, i][:, :, j])
            sums = y[0, o]
            sums[:, y_rows[:, None], y_columns] += seen
    return y


def finish(
    y: F64,
    *,
    bias: F64 | None = None,
    add0: F64 | None = None,
    add1: F64 | None = None,
    slope: float | None = None,
    post: F64 | None = None,
    mask: F64 | None = None,
    mask_slope: float = 1.0,
) -> F64:
    """What a convolution does to its sums before it writes them, in this order."""
    if bias is not None:
        y = y + bias[:, None, None]
    for added in (add0, add1):
        if added is not None:
            y = y + added
    if slope is not None:
        y = np.where(y > 0, y, slope * y)
    if post is not None:
        y = y + post
    if mask is not None:
        y = np.where(mask > 0, y, mask_slope * y)
    return y


def _pairs(count: int, other: int, stride: int, offset: int) -> tuple[Any, Any]:
    """The i in [0, count) and the i * stride + offset in [0, other) that belong together."""
    i = np.arange(count)
    partner = i * stride + offset
    both = (partner >= 0) & (partner < other)
    return i[both], partner[both]
