"""What a backend is: the one class that knows an engine's library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.optimizer import F32, Optimizer

# What is computed with. "tf32" multiplies with 10 bits of mantissa; "fp16" and "bf16" store
# activations in 16 bits and multiply in them. Sums, weights, gradients and the optimizer are
# float32 throughout.
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
PRECISIONS: Sequence[Precision] = get_args(Precision)


@dataclass(frozen=True)
class EngineOptions:
    """What a user may ask of an engine.

    ``threads`` None is the engine's choice. ``memory_budget`` is the most that a step's
    intermediate values may take, in bytes; None: what is fastest.
    """

    threads: int | None = None
    precision: Precision = "fp32"
    memory_budget: int | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """The image at work and where its result goes: float32 (1, 3, H, W) in [-1, 1], contiguous.

    A backend may keep what it derives from a frame (bindings, plans) for as long as it is given the
    same object, but not the frame itself: the session frees it when another size comes.
    """

    image: F32
    restored: F32  # written with =, every element


class Backend(Protocol):
    """Evaluates the graphs of one bundle on the arrays that a session owns.

    ``weights`` and ``gradients`` are flat float32 arrays in the order of the bundle's parameter
    table. They stay in place for the life of the backend; the session changes the weights between
    calls. Nothing is evaluated until it is asked for, and every method raises a `BackendError` if
    the engine fails.
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


class BackendFactory(Protocol):
    """How a backend is opened."""

    def __call__(
        self, bundle: Bundle, weights: F32, gradients: F32, options: EngineOptions
    ) -> Backend:
        """Check that the engine can run the bundle so; raise a `BackendError` if it cannot."""


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
