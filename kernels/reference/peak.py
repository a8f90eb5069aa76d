"""What the kernels that measure a machine compute, in float64: numpy, no cleverness."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def multiply(values: F64, rounds: int, factor: float, term: float) -> F64:
    """``rounds`` times value * factor + term."""
    for _ in range(rounds):
        values = values * factor + term
    return values


def dot(values: F64, rounds: int, factor: float, term: float) -> F64:
    """``rounds`` times value + factor * term + factor * term."""
    return values + 2 * rounds * factor * term
