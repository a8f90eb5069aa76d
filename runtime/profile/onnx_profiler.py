"""ONNX Runtime's own profiler, on a second session of the same graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from edgeadapt.errors import BackendError
from edgeadapt.runtime.optimizer import Optimizer
from edgeadapt.runtime.profile.native import optimizer_operation
from edgeadapt.runtime.profile.onnx_events import read_events, record_of
from edgeadapt.runtime.profile.profiler import Record, Run


@dataclass(frozen=True)
class Opened:
    """A session and one way to run it."""

    engine: Any
    run: Callable[[], object]
    fetched: Sequence[str]  # outputs of the graph that a run asks for


class OnnxProfiler:
    """See `edgeadapt.runtime.profile.profiler.Profiler`.

    ``open_with`` opens ``graph`` with these session options. ``optimizer`` is what takes the step
    afterwards, if any.

    The library writes its record, and the graph as it rearranged it, to a folder that is removed by
    `close`. It counts whole microseconds, and keeps a million events.
    """

    def __init__(
        self,
        graph: str,
        options: Any,
        open_with: Callable[[Any], Opened],
        optimizer: Optimizer | None,
    ) -> None:
        self.graph = graph
        self._optimizer = optimizer
        self._steps: list[Run] = []  # the optimizer's
        self._runs = 0
        self._folder = TemporaryDirectory(prefix="edgeadapt-profile-")
        self._optimized = Path(self._folder.name) / "optimized.onnx"
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "run")
        options.optimized_model_filepath = str(self._optimized)
        try:
            self._opened: Opened | None = open_with(options)
        except BaseException:
            self._folder.cleanup()
            raise

    def run(self) -> None:
        """Run the graph once, and the optimizer's step."""
        assert self._opened is not None, "the profile was taken"
        begin = perf_counter()
        self._opened.run()
        if self._optimizer is not None:
            before = perf_counter()
            self._optimizer.step()
            self._steps.append(Run([before - begin], [perf_counter() - before]))
        self._runs += 1

    def record(self) -> Record:
        """What all runs took."""
        assert self._opened is not None, "the profile was taken"
        fetched, written = self._opened.fetched, Path(self._opened.engine.end_profiling())
        self._opened = None
        events = read_events(written)
        if len(events) != self._runs:
            raise BackendError(
                f"ONNX Runtime kept {len(events)} of {self._runs} runs.", "repeat less often."
            )
        found = record_of(events, self._optimized, fetched)
        if self._optimizer is None:
            return found
        runs = [
            Run([*run.begins, *step.begins], [*run.seconds, *step.seconds])
            for run, step in zip(found.runs, self._steps, strict=True)
        ]
        return Record([*found.operations, optimizer_operation(self._optimizer)], runs)

    def close(self) -> None:
        """End the session and remove what it wrote."""
        if self._opened is not None:
            self._opened.engine.end_profiling()
            self._opened = None
        self._folder.cleanup()
