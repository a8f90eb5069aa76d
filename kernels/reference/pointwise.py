"""Small expressions of arrays: numpy, float64, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

# A step is (function, arguments); an argument is ("x", input), ("t", step) or ("c", number).
Step = tuple[str, tuple[tuple[str, Any], ...]]

_erf = np.vectorize(math.erf, otypes=[float])

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "copy": lambda x: x,
    "neg": lambda x: -x,
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "reciprocal": lambda x: 1.0 / x,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "erf": _erf,
    "floor": np.floor,
    "round": np.round,  # halves to even
    "not": lambda x: x == 0,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": lambda a, b: (a != 0) & (b != 0),
    "or": lambda a, b: (a != 0) | (b != 0),
    "where": lambda condition, a, b: np.where(condition != 0, a, b),
    "leaky": lambda x, slope: np.where(x > 0, x, x * slope),
    "leaky_grad": lambda grad_y, x, slope: np.where(x > 0, grad_y, grad_y * slope),
}


def evaluate(expression: Sequence[Step], inputs: Sequence[F64]) -> F64:
    """The result of the last step; comparisons give 1.0 and 0.0."""
    results: list[F64] = []
    with np.errstate(all="ignore"):  # infinities and what is not a number are results like others
        for function, arguments in expression:
            places = {"x": inputs, "t": results}
            operands = [
                np.float64(value) if place == "c" else places[place][value]
                for place, value in arguments
            ]
            results.append(np.asarray(FUNCTIONS[function](*operands), np.float64))
    return results[-1]
