"""SGD and Adam as PyTorch computes them, in place on flat arrays; a step allocates nothing."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import Bundle
from edgeadapt.errors import ConfigError

F32 = npt.NDArray[np.float32]

# The defaults of torch.optim.Adam.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Optimizer(Protocol):
    """Changes ``weights`` by one step down ``gradients``; both arrays are given when it is made."""

    def step(self) -> None:
        """Read the gradients, write the weights."""


class Sgd:
    """w <- w - a g, with a step size ``a`` for every element (`torch.optim.SGD`)."""

    def __init__(self, weights: F32, gradients: F32, step_sizes: F32) -> None:
        self._weights, self._gradients, self.step_sizes = weights, gradients, step_sizes
        self._change = np.empty_like(weights)

    def step(self) -> None:
        """Read the gradients, write the weights."""
        # Overflow is not an error here: the session looks at what comes out and falls back.
        with np.errstate(all="ignore"):
            np.multiply(self.step_sizes, self._gradients, out=self._change)
            np.subtract(self._weights, self._change, out=self._weights)


class Adam:
    """`torch.optim.Adam` with its default betas and epsilon, and one step size for every element.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,
    w <- w - a / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(self, weights: F32, gradients: F32, step_sizes: F32) -> None:
        self._weights, self._gradients, self.step_sizes = weights, gradients, step_sizes
        self._mean, self._square = np.zeros_like(weights), np.zeros_like(weights)
        self._change, self._root = np.empty_like(weights), np.empty_like(weights)
        self._count = 0

    def step(self) -> None:
        """Read the gradients, write the weights."""
        self._count += 1
        bias1 = 1.0 - BETA1**self._count
        root_bias2 = (1.0 - BETA2**self._count) ** 0.5
        gradients, mean, square = self._gradients, self._mean, self._square
        change, root = self._change, self._root
        with np.errstate(all="ignore"):
            # PyTorch moves the mean by a fraction of the distance (lerp) and scales the square, in
            # this order.
            np.subtract(gradients, mean, out=change)
            np.multiply(change, np.float32(1.0 - BETA1), out=change)
            np.add(mean, change, out=mean)
            np.multiply(square, np.float32(BETA2), out=square)
            np.multiply(gradients, gradients, out=change)
            np.multiply(change, np.float32(1.0 - BETA2), out=change)
            np.add(square, change, out=square)
            np.sqrt(square, out=root)
            np.divide(root, np.float32(root_bias2), out=root)
            np.add(root, np.float32(EPSILON), out=root)
            np.divide(mean, root, out=change)
            np.multiply(change, self.step_sizes, out=change)
            np.divide(change, np.float32(bias1), out=change)
            np.subtract(self._weights, change, out=self._weights)


OPTIMIZERS: Mapping[str, type[Sgd] | type[Adam]] = {"sgd": Sgd, "adam": Adam}


def make_optimizer(
    bundle: Bundle, weights: F32, gradients: F32, scope: str, step_size: float | None
) -> Optimizer:
    """A fresh optimizer of the bundle's kind for one adaptation of the parameters in ``scope``."""
    kind = OPTIMIZERS[bundle.manifest.adaptation.optimizer]
    return kind(weights, gradients, flat_step_sizes(bundle, scope, step_size))


def flat_step_sizes(bundle: Bundle, scope: str, step_size: float | None) -> F32:
    """The step size of every element of the flat weights: zero outside ``scope``.

    ``step_size`` None takes the bundle's: the learned one of a parameter where there is one, else
    the common one. A number replaces them all.

    Raises:
        ConfigError: if ``step_size`` is no number, negative, or not finite as a float32.
    """
    if step_size is not None and not _is_step_size(step_size):
        raise ConfigError(
            f"step_size must be a finite number, at least 0, got {step_size!r}.",
            f"leave it out for the bundle's own, {bundle.manifest.adaptation.step_size:g}.",
        )
    adaptation = bundle.manifest.adaptation
    offsets = bundle.offsets()
    result = np.zeros(sum(row.size for row in bundle.manifest.parameters), np.float32)
    for name in bundle.scope(scope).parameters:
        learned = adaptation.step_sizes.get(name, adaptation.step_size)
        result[offsets[name]] = learned if step_size is None else step_size
    return result


def _is_step_size(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return 0.0 <= float(value) <= float(np.finfo(np.float32).max)
