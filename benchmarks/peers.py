"""One adaptation step and one restoration: this runtime against PyTorch, on the same work.

Results are compared before anything is timed, and the peers take turns, since two runs of one
program differ by more than what is looked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import Bundle
from edgeadapt.errors import EdgeadaptError
from edgeadapt.image import to_network
from edgeadapt.runtime.backend import EngineOptions, Frame, Precision
from edgeadapt.runtime.backends import open_backend
from edgeadapt.runtime.optimizer import make_optimizer
from edgeadapt.testing import compare_gradients, noise

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

# Relative L2 of all gradients as one vector, and of the loss: float32 sums over an image differ by
# a few 1e-6.
BOUND = 1e-4
TENSOR_BOUND = 1e-2  # of one tensor
IMAGE_BOUND = 1e-4  # absolute, of a range of 2
# bfloat16 has 8 bits: a rounding is up to 2^-9 of a value, and some forty layers follow each other.
# On noise PyTorch's own bfloat16 is 0.04 from its float32, and 0.2 in the worst tensor of `edge`.
# On photos, which it rebuilds to within a few roundings, they decide most signs of the L1 loss, and
# PyTorch is 0.6 to 1.3 off, as far as if the gradient were 0 or another's: that would hold nothing.
HALF_LOSS_BOUND, HALF_BOUND, HALF_TENSOR_BOUND, HALF_IMAGE_BOUND = 0.1, 0.3, 0.95, 0.1
# Where rounding decides a sign (of an L1 loss, of a LeakyReLU), PyTorch does not agree with itself
# in another layout. In a large image one such pixel is little; in a small one it is not, but the
# next image has none. A fault is in every image.
_TRIES = 5
PAUSE_SECONDS = 0.1  # threads of the engine before spin for a while after their work
_TORCH = "torch"
HALF = " bf16"  # the end of the name of a peer that computes in bfloat16


class Peer(Protocol):
    """Something that can adapt a bundle's network to one image."""

    def step(self) -> float:
        """Forward, loss, backward and update; returns the loss before the update."""

    def restore(self) -> F32:
        """The restored image, (1, 3, H, W)."""

    def gradients(self) -> Mapping[str, F32]:
        """Those of the last step, by parameter."""


@dataclass(frozen=True)
class Work:
    """What every peer does; all of it travels to another process as JSON."""

    bundle: str
    height: int  # of the image; the network's is padded
    width: int
    scope: str
    threads: int
    factory: str  # of the network in PyTorch


@dataclass(frozen=True)
class Agreement:
    """How far a peer's results are from the reference's."""

    loss: float  # relative
    gradients: float  # relative L2 of all as one vector
    worst_tensor: float  # relative L2
    image: float  # largest absolute difference

    def within_bounds(self, half: bool = False) -> bool:
        """Whether all are within the bounds of float32, or of bfloat16; NaN is not."""
        values = (self.loss, self.gradients, self.worst_tensor, self.image)
        bounds = (BOUND, BOUND, TENSOR_BOUND, IMAGE_BOUND)
        if half:
            bounds = (HALF_LOSS_BOUND, HALF_BOUND, HALF_TENSOR_BOUND, HALF_IMAGE_BOUND)
        return all(value <= bound for value, bound in zip(values, bounds, strict=True))


class RuntimePeer:
    """This runtime: a backend on arrays as a session has them, and the session's optimizer."""

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        image: F32,
        scope: str,
        threads: int,
        precision: Precision = "fp32",
    ) -> None:
        weights = bundle.weights()
        self._flat = np.zeros_like(weights)
        self._bundle, self._scope = bundle, scope
        self._backend = open_backend(
            backend, bundle, weights, self._flat, EngineOptions(threads, precision)
        )
        self._optimizer = make_optimizer(bundle, weights, self._flat, scope, None)
        self._frame = Frame(image, np.empty_like(image))

    def step(self) -> float:
        """As `Session.adapt` does."""
        return self._backend.step(self._scope, self._frame, self._optimizer)

    def restore(self) -> F32:
        """As a `Session` with the bundle's weights does."""
        self._backend.restore(self._frame)
        return self._frame.restored

    def gradients(self) -> Mapping[str, F32]:
        """Views of the flat array."""
        return self._bundle.named(self._flat, self._scope)


def is_torch(name: str) -> bool:
    """Whether the peer called ``name`` needs PyTorch."""
    return name.startswith(_TORCH)


def torch_names(with_compile: bool, half: bool = False) -> list[str]:
    """The ways to run PyTorch; the first is the reference."""
    names = [_TORCH, f"{_TORCH} channels-last", *([f"{_TORCH} compile"] if with_compile else [])]
    return names + [name + HALF for name in names] if half else names


def make_peer(
    name: str, bundle: Bundle, work: Work, seed: int = 0, picture: U8 | None = None
) -> Peer:
    """Open a peer, a backend's name or one of `torch_names`, for a picture or noise ``seed``."""
    if picture is None:
        picture = noise(seed, work.height, work.width)
    image = to_network(picture, bundle.manifest.image.size_multiple)
    if not is_torch(name):
        precision: Precision = "bf16" if name.endswith(HALF) else "fp32"
        backend = name.removesuffix(HALF)
        return RuntimePeer(bundle, backend, image, work.scope, work.threads, precision)
    from edgeadapt.benchmarks.torch_peer import TorchPeer

    words = name.split()
    return TorchPeer(
        bundle,
        image,
        work.scope,
        work.threads,
        work.factory,
        channels_last="channels-last" in words,
        compiled="compile" in words,
        bf16=name.endswith(HALF),
    )


def make_peers(
    names: Sequence[str], bundle: Bundle, work: Work
) -> tuple[dict[str, Peer], dict[str, Agreement]]:
    """Open every peer and `compare` them; each has then taken one step.

    Raises:
        EdgeadaptError: if they do not agree on any of a few images.
    """
    for seed in range(_TRIES):
        opened = {name: make_peer(name, bundle, work, seed) for name in names}
        try:
            return opened, compare(opened)
        except EdgeadaptError:
            if seed == _TRIES - 1:
                raise
    raise AssertionError("there is at least one try")


def compare(peers: Mapping[str, Peer]) -> dict[str, Agreement]:
    """Restore and take the first step with each, all against the first of PyTorch, or the first.

    Raises:
        EdgeadaptError: if one is out of bounds.
    """
    found = {name: first_results(peer) for name, peer in peers.items()}
    reference = next((name for name in peers if is_torch(name)), next(iter(peers)))
    result = {}
    for name, own in found.items():
        result[name] = agreement(own, found[reference])
        if not result[name].within_bounds(half=name.endswith(HALF)):
            raise EdgeadaptError(
                f"{name} and {reference} do not agree ({result[name]}); nothing was timed.",
                "`edgeadapt check` compares the bundle with PyTorch in float64.",
            )
    return result


@dataclass(frozen=True, eq=False)
class Results:
    """What a peer computed first."""

    image: F32  # restored, before the step
    loss: float
    gradients: Mapping[str, F32]


def first_results(peer: Peer) -> Results:
    """Restore, then take a step."""
    image, loss = peer.restore().copy(), peer.step()
    return Results(image, loss, {name: grad.copy() for name, grad in peer.gradients().items()})


def agreement(own: Results, other: Results) -> Agreement:
    """How far ``own`` is from ``other``."""
    mine, others = own.gradients, other.gradients
    return Agreement(
        abs(own.loss - other.loss) / abs(other.loss) if own.loss != other.loss else 0.0,
        _relative(_flat(mine, others), _flat(others, others)),
        float(np.max([_relative(mine[key], others[key]) for key in others])),  # NaN stays
        float(np.abs(own.image.astype(np.float64) - other.image).max()),
    )


def time_in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` times after one that warms up, one call after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: values[1:] for name, values in seconds.items()}


def medians_ms(peers: Mapping[str, Peer], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds: operation ("step", "restore") -> peer -> time."""
    operations: dict[str, Mapping[str, Callable[[], Any]]] = {
        "step": {name: peer.step for name, peer in peers.items()},
        "restore": {name: peer.restore for name, peer in peers.items()},
    }
    return {
        operation: {n: 1e3 * median(s) for n, s in time_in_turn(calls, repeats).items()}
        for operation, calls in operations.items()
    }


def _flat(gradients: Mapping[str, F32], order: Sequence[str] | Mapping[str, F32]) -> F32:
    return np.concatenate([np.ravel(gradients[name]) for name in order])


def _relative(actual: F32, expected: F32) -> float:
    return compare_gradients(actual, expected).relative_l2
