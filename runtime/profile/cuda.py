"""The CUDA engine's profiler: launches outside of a graph, with an event before each operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from edgeadapt.runtime.cuda.device import Event
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.profile.operations import operations_of
from edgeadapt.runtime.profile.parts import Operation
from edgeadapt.runtime.profile.profiler import Record, Run

_TO_DEVICE = Operation("copies to the device", "upload", "other", None, None, "fp32")
_FROM_DEVICE = Operation("copies from the device", "download", "other", None, None, "fp32")


class LaunchProfiler:
    """See `edgeadapt.runtime.profile.profiler.Profiler`.

    ``run`` runs ``program`` and gives the moments at which the copies to the device begin, each
    operation begins, the last one ends, and the copies back end. Times are the device's own.
    """

    def __init__(self, graph: str, program: Program, run: Callable[[], Sequence[Event]]) -> None:
        self.graph = graph
        self._program, self._run = program, run
        self._runs: list[Run] = []

    def run(self) -> None:
        """Run the program once."""
        moments = self._run()
        assert len(moments) == len(self._program.ops) + 3, (len(moments), len(self._program.ops))
        at = [moment.seconds_since(moments[0]) for moment in moments]
        seconds = [end - begin for begin, end in pairwise(at)]
        self._runs.append(Run(at[:-1], seconds))

    def record(self) -> Record:
        """What all runs took."""
        return Record([_TO_DEVICE, *operations_of(self._program), _FROM_DEVICE], self._runs)

    def close(self) -> None:
        """There is nothing but events, which go with their device."""
