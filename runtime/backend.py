"""What a backend is: the one class that knows an engine's library."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import Bundle
from edgeadapt.image import from_network, to_network
from edgeadapt.runtime.optimizer import F32, Optimizer

U8 = npt.NDArray[np.uint8]

# What is computed with. "tf32" multiplies with 10 bits of mantissa; "fp16" and "bf16" store
# activations in 16 bits and multiply in them. Sums, weights, gradients and the optimizer are
# float32 throughout.
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
PRECISIONS: Sequence[Precision] = get_args(Precision)


@dataclass(frozen=True)
class EngineOptions:
    """What a user may ask of an engine.

    ``threads`` None is the engine's choice. ``memory_budget`` is the most that a step's
    intermediate values may take, in bytes; None: what is fastest. ``engine`` is a file that
    `edgeadapt build` wrote, for the backend tensorrt; None: one of its cache, or a new one.
    """

    threads: int | None = None
    precision: Precision = "fp32"
    memory_budget: int | None = None
    engine: str | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """The image at work and where its result goes: float32 (1, 3, H, W) in [-1, 1], contiguous.

    A backend may keep what it derives from a frame (bindings, plans) for as long as it is given the
    same object, but not the frame itself: the session frees it when another size comes. One that
    computes elsewhere gives frames of its own kind (`Backend.open_frame`).
    """

    image: F32
    restored: F32  # written with =, every element

    def put(self, image: U8, multiple: int) -> None:
        """Write ``image`` from uint8 (H, W, 3) RGB, padded to a ``multiple`` by reflection."""
        to_network(image, multiple, out=self.image)

    def get(self, height: int, width: int) -> U8:
        """The upper left of ``restored`` as uint8 (``height``, ``width``, 3).

        Raises:
            ArrayError: if a value is not a number.
        """
        return from_network(self.restored, height, width)

    def is_finite(self) -> bool:
        """Whether every element of ``restored`` is."""
        return is_finite(self.restored)


class Evaluation(NamedTuple):
    """What a step, or the evaluation after the last one, found."""

    loss: float
    seconds: float = 0.0  # that a step took
    # Whether weights, gradients and the frame's result are those of this evaluation. Weights and
    # result are in any case when the last one of an adaptation is given.
    settled: bool = True


class Backend(Protocol):
    """Evaluates the graphs of one bundle on the arrays that a session owns.

    ``weights`` and ``gradients`` are flat float32 arrays in the order of the bundle's parameter
    table. They stay in place for the life of the backend. The session changes the weights between
    calls and says so (`weights_changed`), so that a backend may work on copies of its own; what a
    method writes is in the session's arrays when it returns. Nothing is evaluated until it is asked
    for, and every method raises a `BackendError` if the engine fails.
    """

    def open_frame(self, height: int, width: int) -> Frame:
        """A frame for images that are padded to this size; its contents are undefined."""

    def weights_changed(self) -> None:
        """The session has written to ``weights``."""

    def adapt(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, each: bool
    ) -> Iterator[Evaluation]:
        """Take ``steps`` steps as `step` does, then evaluate as `loss` does.

        Gives the K + 1 evaluations in their order; who stops asking for them gets the arrays as
        they were left. With ``each`` all are settled; without, a backend may run through all steps
        before the first one is given.
        """

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """Open what `step` needs with the same arguments, so that the first takes no longer."""

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights (`restore.onnx`)."""

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from ``weights`` (`loss.onnx`)."""

    def loss(self, frame: Frame) -> float:
        """The adaptation loss at ``weights`` (`loss.onnx`); writes ``frame.restored`` too."""

    def gradients(self, scope: str, frame: Frame) -> float:
        """The adaptation loss at ``weights``; writes the gradients of the scope's parameters (=).

        The rest of ``gradients`` is left alone. Writes ``frame.restored`` too.
        """

    def step(self, scope: str, frame: Frame, optimizer: Optimizer) -> float:
        """What `gradients` does, then the optimizer's step; returns the loss before it.

        ``optimizer`` was made for the arrays of this backend and for ``scope``.
        """

    def close(self) -> None:
        """Give back what memory alone does not; the backend cannot be used any more."""


class BackendFactory(Protocol):
    """How a backend is opened."""

    def __call__(
        self, bundle: Bundle, weights: F32, gradients: F32, options: EngineOptions
    ) -> Backend:
        """Check that the engine can run the bundle so; raise a `BackendError` if it cannot."""


class HostBackend:
    """What the backends that compute in the session's own arrays have in common."""

    def open_frame(self, height: int, width: int) -> Frame:
        """A frame for images that are padded to this size."""
        shape = (1, 3, height, width)
        return Frame(np.empty(shape, np.float32), np.empty(shape, np.float32))

    def weights_changed(self) -> None:
        """There are no copies."""

    def close(self) -> None:
        """There is nothing but memory."""


def take_steps(
    engine: Backend, scope: str, frame: Frame, optimizer: Optimizer, steps: int
) -> Iterator[Evaluation]:
    """`Backend.adapt` one step after the other."""
    for _ in range(steps):
        begin = perf_counter()
        loss = engine.step(scope, frame, optimizer)
        yield Evaluation(loss, perf_counter() - begin)
    yield Evaluation(engine.loss(frame))


def is_finite(array: F32) -> bool:
    """Whether every element is finite; unlike np.isfinite(array).all() this makes no array."""
    with np.errstate(invalid="ignore"):
        return math.isfinite(array.min()) and math.isfinite(array.max())


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
