"""Products of matrices: numpy, float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def matmul(a: F64, b: F64) -> F64:
    """``y[..., i, j] = sum over k of a[..., i, k] * b[..., k, j]``.

    All have one rank; a batch axis of 1 is repeated.
    """
    return np.asarray((a[..., :, :, None] * b[..., None, :, :]).sum(axis=-2))
