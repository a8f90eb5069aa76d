"""The native engine's profiler: the interpreter of its programs takes the time of each call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from edgeadapt.runtime.optimizer import Optimizer
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.profile.operations import operations_of
from edgeadapt.runtime.profile.parts import Operation
from edgeadapt.runtime.profile.profiler import Record, Run


def optimizer_operation(optimizer: Optimizer) -> Operation:
    """A step that the engine leaves to the optimizer."""
    kind = type(optimizer).__name__
    return Operation(f"step of {kind} by numpy", kind, "optimizer", None, None, "fp32")


class ProgramProfiler:
    """See `edgeadapt.runtime.profile.profiler.Profiler`.

    ``run`` runs ``program`` and writes what each operation takes, in nanoseconds, to an array of
    int64. ``optimizer`` is what takes the step afterwards, if the program does not.
    """

    def __init__(
        self,
        graph: str,
        program: Program,
        run: Callable[[Any], object],
        optimizer: Optimizer | None,
    ) -> None:
        self.graph = graph
        self._program, self._run, self._optimizer = program, run, optimizer
        self._runs: list[Run] = []

    def run(self) -> None:
        """Run the program once, and the optimizer's step."""
        taken = (ctypes.c_int64 * len(self._program.ops))()
        begin = perf_counter()
        self._run(taken)
        seconds = np.array(taken, np.float64) * 1e-9
        begins = np.cumsum(seconds) - seconds  # one after the other, with nothing between them
        listed = Run(begins.tolist(), seconds.tolist())
        if self._optimizer is not None:
            before = perf_counter()
            self._optimizer.step()
            after = perf_counter()
            listed = Run([*listed.begins, before - begin], [*listed.seconds, after - before])
        self._runs.append(listed)

    def record(self) -> Record:
        """What all runs took."""
        operations = operations_of(self._program)
        if self._optimizer is not None:
            operations.append(optimizer_operation(self._optimizer))
        return Record(operations, self._runs)

    def close(self) -> None:
        """There is nothing but memory."""
