"""How close a CUDA kernel's result has to be to the reference: as its arithmetic allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from support.strided import wide

Array = npt.NDArray[Any]
_UNIT = 2.0**-24  # half a unit of float32's last place, in which everything is added up
# Rounding the result to its own type: relative to it, and where numbers get too small for that.
_OWN = {"float32": (2.0**-24, 0.0), "float16": (2.0**-11, 2.0**-25), "uint16": (2.0**-8, 0.0)}


def check_close(actual: Array, expected: Array, magnitude: Array, roundings: int) -> None:
    """Fail unless ``actual`` is ``expected`` but for so many float32 roundings and its own type's.

    ``magnitude`` is what the result would be if nothing cancelled: sums round relative to it.
    """
    values = wide(actual)
    assert not np.isnan(values).any(), "something was not written, or NaN was read"
    relative, absolute = _OWN[actual.dtype.name]
    allowed = roundings * _UNIT * magnitude + relative * abs(expected) + absolute
    error = abs(values - expected)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), f"{worst}: off by {error[worst]}, allowed {allowed[worst]}"
