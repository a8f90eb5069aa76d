"""The sum of absolute differences and its gradient: numpy, float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def value(a: F64, b: F64, scale: float) -> float:
    """``scale * sum |a - b|``."""
    return scale * float(np.abs(a - b).sum())


def gradient(a: F64, b: F64, scale: float) -> F64:
    """Gradient of `value` with respect to ``a``: ``scale * sign(a - b)``, 0 where a = b."""
    return np.asarray(scale * np.sign(a - b))
