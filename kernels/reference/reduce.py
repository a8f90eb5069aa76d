"""Sums, products and extremes over axes: numpy, float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

HOW: Mapping[str, Callable[..., Any]] = {
    "sum": np.sum,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
}
BEFORE: Mapping[str | None, Callable[[F64], F64]] = {
    None: lambda x: x,
    "abs": np.abs,
    "square": np.square,
}


def reduce(
    x: F64,
    how: str,
    axes: Sequence[int],
    *,
    before: str | None = None,
    after: str | None = None,
    scale: float = 1.0,
) -> F64:
    """``after(scale * how(before(x)))`` over ``axes``, which stay with length 1; none if empty."""
    result = scale * HOW[how](BEFORE[before](x), axis=tuple(axes), keepdims=True)
    return np.asarray(np.sqrt(result) if after == "sqrt" else result)
