"""One image after the other through a session, with the time of each phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.backend import U8, Backend, EngineOptions, Evaluation, Frame
from edgeadapt.runtime.backends import AUTO, BACKENDS
from edgeadapt.runtime.optimizer import Optimizer
from edgeadapt.runtime.profile.profiler import Profiled
from edgeadapt.runtime.session import Session

# An image's way in, what the engine computes, and the image's way out. On GPUs the ways are copies
# to and from the device, conversions included; elsewhere conversions are all there is to them.
PhaseKind = Literal["in", "compute", "out"]


@dataclass(frozen=True)
class Phase:
    """A part of a run; times in seconds from the begin of the measurement."""

    kind: PhaseKind
    begin: float
    end: float
    seconds: float  # the difference, unless a device's own clock says better


@dataclass(frozen=True)
class Run:
    """One image in, K steps, one image out; times in seconds from the begin of the measurement."""

    begin: float
    end: float
    phases: tuple[Phase, ...]
    # Of "compute", what the host took without waiting for a device; None: there is no device.
    enqueue: float | None
    taken_back: str  # "" or why the session went back to the bundle's weights

    @property
    def latency(self) -> float:
        """From the image to its restoration, all that the session does in between included."""
        return self.end - self.begin

    def seconds(self, kind: PhaseKind) -> float:
        """Of all phases of a kind."""
        return sum(phase.seconds for phase in self.phases if phase.kind == kind)


@dataclass(frozen=True)
class Plan:
    """How long to measure; in seconds."""

    warm_up: float = 0.2
    duration: float = 3.0
    iterations: int = 10  # at least
    idle: float = 0.0  # between two runs


@dataclass(frozen=True)
class Measurement:
    """Runs after a warm-up, one after the other."""

    warm_ups: int
    warm_up_seconds: float
    runs: tuple[Run, ...]
    began: float  # of `time.perf_counter`, when the first run began

    @property
    def walltime(self) -> float:
        """From the first run's begin to the last one's end, waits between them included."""
        return self.runs[-1].end - self.runs[0].begin


def measure(session: TimedSession, image: U8, steps: int, scope: str, plan: Plan) -> Measurement:
    """Run at least as often and as long as ``plan`` says, each time from the bundle's weights.

    Raises:
        BackendError, ConfigError, BundleError: as `Session.adapt` and `Session.restore` do.
    """
    warm_ups, origin = 0, perf_counter()
    while not warm_ups or perf_counter() - origin < plan.warm_up:
        session.run_once(image, steps, scope, origin)
        warm_ups += 1
    warm_up_seconds, origin = perf_counter() - origin, perf_counter()
    runs: list[Run] = []
    while not runs or len(runs) < plan.iterations or runs[-1].end < plan.duration:
        if runs and plan.idle:
            time.sleep(plan.idle)
        runs.append(session.run_once(image, steps, scope, origin))
    return Measurement(warm_ups, warm_up_seconds, tuple(runs), origin)


class TimedSession(Session):
    """A session that notes when its engine and its frame are at work."""

    def __init__(self, bundle: Bundle, backend: str, options: EngineOptions) -> None:
        super().__init__(bundle, backend, options.threads, options.precision, options.memory_budget)
        assert self._engine is not None
        self.backend = _name_of(self._engine) if backend == AUTO else backend
        self.profiled = isinstance(self._engine, Profiled)  # whether it can be taken apart
        self._watch = Watch(getattr(self._engine, "device", None))
        self._engine = TimedEngine(self._engine, self._watch)

    def __enter__(self) -> TimedSession:
        return self

    def run_once(self, image: U8, steps: int, scope: str, origin: float) -> Run:
        """One image from the bundle's weights; times count from ``origin``."""
        self.reset()
        self._watch.clear()
        taken_back = ""
        begin = perf_counter()
        if steps:
            taken_back = self.adapt(image, steps, scope).reverted
        self.restore(image)
        end = perf_counter()
        phases, enqueue = self._watch.phases(origin)
        return Run(begin - origin, end - origin, phases, enqueue, taken_back)


class Watch:
    """Collects phases. With a device also its own times, and the host's waiting for it."""

    def __init__(self, device: Any = None) -> None:
        self._device = device
        self._found: list[tuple[PhaseKind, float, float, Any, Any]] = []
        self._waited = 0.0
        self._computing = False
        if device is not None:
            # Whatever waits for the device asks this one object to.
            self._synchronize = device.synchronize
            device.synchronize = self._wait

    def clear(self) -> None:
        """Forget the last run."""
        self._found.clear()
        self._waited = 0.0

    @contextmanager
    def at(self, kind: PhaseKind) -> Iterator[None]:
        """Note a phase."""
        self._computing = kind == "compute"
        before = self._device.mark() if self._device is not None else None
        begin = perf_counter()
        try:
            yield
        finally:
            end = perf_counter()
            after = self._device.mark() if self._device is not None else None
            self._computing = False
            self._found.append((kind, begin, end, before, after))

    def phases(self, origin: float) -> tuple[tuple[Phase, ...], float | None]:
        """What was noted, and the host's own share of "compute"; all work is done."""
        found = tuple(
            Phase(
                kind,
                begin - origin,
                end - origin,
                end - begin if after is None else after.seconds_since(before),
            )
            for kind, begin, end, before, after in self._found
        )
        if self._device is None:
            return found, None
        computing = sum(end - begin for kind, begin, end, *_ in self._found if kind == "compute")
        return found, max(computing - self._waited, 0.0)

    def _wait(self) -> None:
        begin = perf_counter()
        self._synchronize()
        if self._computing:
            self._waited += perf_counter() - begin


@dataclass(frozen=True, eq=False)
class TimedFrame(Frame):
    """A frame of an engine, watched."""

    inner: Frame
    watch: Watch

    @classmethod
    def of(cls, inner: Frame, watch: Watch) -> TimedFrame:
        """Watch a frame."""
        return cls(inner.image, inner.restored, inner, watch)

    def put(self, image: U8, multiple: int) -> None:
        """See `Frame`."""
        with self.watch.at("in"):
            self.inner.put(image, multiple)

    def get(self, height: int, width: int) -> U8:
        """See `Frame`."""
        with self.watch.at("out"):
            return self.inner.get(height, width)

    def is_finite(self) -> bool:
        """See `Frame`."""
        return self.inner.is_finite()


class TimedEngine:
    """An engine, watched; see `Backend`."""

    def __init__(self, engine: Backend, watch: Watch) -> None:
        self._engine, self._watch = engine, watch

    def open_frame(self, height: int, width: int) -> Frame:
        """A watched frame."""
        return TimedFrame.of(self._engine.open_frame(height, width), self._watch)

    def weights_changed(self) -> None:
        """See `Backend`."""
        self._engine.weights_changed()

    def adapt(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, each: bool
    ) -> Iterator[Evaluation]:
        """See `Backend`; what is done between two evaluations is not the engine's."""
        found = self._engine.adapt(scope, _inner(frame), optimizer, steps, each)
        for _ in range(steps + 1):
            with self._watch.at("compute"):
                evaluation = next(found)
            yield evaluation

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """See `Backend`; plans are made in the warm-up."""
        self._engine.prepare(scope, _inner(frame), optimizer)

    def restore(self, frame: Frame) -> None:
        """See `Backend`."""
        with self._watch.at("compute"):
            self._engine.restore(_inner(frame))

    def restore_adapted(self, frame: Frame) -> None:
        """See `Backend`."""
        with self._watch.at("compute"):
            self._engine.restore_adapted(_inner(frame))

    def loss(self, frame: Frame) -> float:
        """See `Backend`."""
        with self._watch.at("compute"):
            return self._engine.loss(_inner(frame))

    def gradients(self, scope: str, frame: Frame) -> float:
        """See `Backend`."""
        with self._watch.at("compute"):
            return self._engine.gradients(scope, _inner(frame))

    def step(self, scope: str, frame: Frame, optimizer: Optimizer) -> float:
        """See `Backend`."""
        with self._watch.at("compute"):
            return self._engine.step(scope, _inner(frame), optimizer)

    def close(self) -> None:
        """See `Backend`."""
        self._engine.close()


def _inner(frame: Frame) -> Frame:
    return frame.inner if isinstance(frame, TimedFrame) else frame


def _name_of(engine: Backend) -> str:
    """What the command line calls it."""
    kind = type(engine).__name__
    named = [name for name, (target, _) in BACKENDS.items() if target.endswith(f":{kind}")]
    return named[0] if named else kind
