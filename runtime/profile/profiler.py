"""What a backend offers that can be profiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from edgeadapt.runtime.backend import Frame
from edgeadapt.runtime.optimizer import Optimizer
from edgeadapt.runtime.profile.parts import Operation


class Run(NamedTuple):
    """When the operations of one run took place, in seconds from its begin; one for each."""

    begins: Sequence[float]
    seconds: Sequence[float]


class Record(NamedTuple):
    """What was measured."""

    operations: Sequence[Operation]  # in the order in which they run
    runs: Sequence[Run]  # one for each call of `Profiler.run`, in order


class Profiler(Protocol):
    """Runs one kind of work of a backend again and again and takes the time of its operations."""

    @property
    def graph(self) -> str:
        """The file of the graph that it runs."""

    def run(self) -> None:
        """What the backend's own method does, measured. May take longer the first time."""

    def record(self) -> Record:
        """What all runs took; none may follow."""

    def close(self) -> None:
        """Give back what it holds; without effect the second time."""


@runtime_checkable
class Profiled(Protocol):
    """A backend that can take the time of its operations.

    The arrays, the frame and the optimizer are those of `edgeadapt.runtime.backend.Backend`.
    """

    def step_profiler(self, scope: str, frame: Frame, optimizer: Optimizer) -> Profiler:
        """Of what `Backend.step` does."""

    def restore_profiler(self, frame: Frame) -> Profiler:
        """Of what `Backend.restore` does."""
