"""Steps of SGD and Adam in float64: numpy, no cleverness."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class AdamState(NamedTuple):
    """What Adam keeps from step to step, and the weights."""

    weights: F64
    mean: F64
    square: F64


def sgd(weights: F64, gradients: F64, step_sizes: F64) -> F64:
    """w - a g, with one ``a`` for every element."""
    return weights - step_sizes * gradients


def adam(
    state: AdamState,
    gradients: F64,
    step_sizes: F64,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> AdamState:
    """Algorithm 1 of Kingma and Ba, arXiv:1412.6980; ``step`` is 1 the first time.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,
    w <- w - a / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Elements whose step size is zero are not touched, nor is what is kept of them.
    """
    beta1, beta2 = betas
    mean: Any = beta1 * state.mean + (1 - beta1) * gradients
    square: Any = beta2 * state.square + (1 - beta2) * gradients**2
    root = np.sqrt(square / (1 - beta2**step)) + epsilon
    weights = state.weights - step_sizes / (1 - beta1**step) * mean / root
    used = step_sizes != 0
    after = zip((weights, mean, square), state, strict=True)
    return AdamState(*(np.where(used, new, old) for new, old in after))
