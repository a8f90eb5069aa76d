"""The native engine: a bundle's graphs as planned, fused programs of compiled kernels."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import BackendError
from edgeadapt.kernels.library import open_library
from edgeadapt.runtime.backend import (
    EngineOptions,
    Evaluation,
    Frame,
    HostBackend,
    take_steps,
    usable_cores,
)
from edgeadapt.runtime.optimizer import F32, Optimizer, Sgd
from edgeadapt.runtime.plan.bind import Bound, Kernels, bind
from edgeadapt.runtime.plan.compile import (
    Plan,
    check_rules,
    compile_graph,
    refuse_precision,
    target_of,
)
from edgeadapt.runtime.plan.ir import Storage
from edgeadapt.runtime.plan.memory import Memory, hold_constants
from edgeadapt.runtime.profile.native import ProgramProfiler

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
U8 = npt.NDArray[np.uint8]


class NativeBackend(HostBackend):
    """See `edgeadapt.runtime.backend.Backend`.

    A graph is planned when it is first asked for at a size; plans of other sizes are dropped then.
    All share one arena, as large as the largest needs: they never run at the same time.
    """

    def __init__(
        self, bundle: Bundle, weights: F32, gradients: F32, options: EngineOptions
    ) -> None:
        refuse_precision(options.precision)
        self._bundle, self._weights, self._gradients = bundle, weights, gradients
        self._original = bundle.weights()  # what restore() uses while a session has others
        self._library = open_library()
        threads = options.threads or usable_cores()
        self._team = self._library.team(threads)
        self._kernels = Kernels(self._library, self._library.levels[-1])
        self._target = target_of(options, self._kernels, threads)
        self._size = (0, 0)
        self._plans: dict[tuple[str, bool], tuple[_Work, Plan]] = {}
        self._placed: dict[_Work, _Placed] = {}
        self._arena = _aligned_bytes(0)
        self._sgd: weakref.ref[Sgd] | None = None  # whose step sizes `_step_sizes` are
        self._step_sizes: StepSizes = ()
        check_rules(bundle)

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """Plan the scope's step and the loss graph for images of this size."""
        self._find(self._step_work(scope, optimizer), frame)
        self._find(_Work(LOSS_GRAPH), frame)

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights."""
        self._run(_Work(RESTORE_GRAPH, original=True), frame)

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the weights in use."""
        self._run(_Work(RESTORE_GRAPH), frame)

    def loss(self, frame: Frame) -> float:
        """The loss at the session's weights; writes ``frame.restored`` too."""
        return self._run(_Work(LOSS_GRAPH), frame).loss()

    def gradients(self, scope: str, frame: Frame) -> float:
        """The loss at the session's weights; writes its gradients and ``frame.restored``."""
        return self._run(_Work(self._bundle.scope(scope).graph), frame).loss()

    def step(self, scope: str, frame: Frame, optimizer: Optimizer) -> float:
        """One program with the update in it for SGD; for others the gradients, then their step."""
        loss = self._run(self._step_work(scope, optimizer), frame).loss()
        if not isinstance(optimizer, Sgd):
            optimizer.step()
        return loss

    def adapt(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, each: bool
    ) -> Iterator[Evaluation]:
        """One step after the other, then the loss."""
        return take_steps(self, scope, frame, optimizer, steps)

    def step_profiler(self, scope: str, frame: Frame, optimizer: Optimizer) -> ProgramProfiler:
        """Takes the time of each operation of a step."""
        work = self._step_work(scope, optimizer)
        return self._profiler(work, frame, None if isinstance(optimizer, Sgd) else optimizer)

    def restore_profiler(self, frame: Frame) -> ProgramProfiler:
        """Takes the time of each operation of a restoration."""
        return self._profiler(_Work(RESTORE_GRAPH, original=True), frame)

    def _profiler(
        self, work: _Work, frame: Frame, optimizer: Optimizer | None = None
    ) -> ProgramProfiler:
        program = self._find(work, frame).bound.memory.program
        return ProgramProfiler(
            work.graph, program, lambda taken: self._run(work, frame, taken), optimizer
        )

    def _run(self, work: _Work, frame: Frame, nanoseconds: Any = None) -> _Placed:
        placed = self._find(work, frame)
        self._library.run(placed.bound.calls, self._team, nanoseconds)
        return placed

    def _step_work(self, scope: str, optimizer: Optimizer) -> _Work:
        found = self._bundle.scope(scope)
        if not isinstance(optimizer, Sgd):
            return _Work(found.graph)
        if self._sgd is None or self._sgd() is not optimizer:
            # All elements of a parameter have the same.
            begins = {name: part.start for name, part in self._bundle.offsets().items()}
            self._step_sizes = tuple(
                (name, float(optimizer.step_sizes[begins[name]])) for name in found.parameters
            )
            self._sgd = weakref.ref(optimizer)
        return _Work(found.graph, step_sizes=self._step_sizes)

    def _find(self, work: _Work, frame: Frame) -> _Placed:
        placed = self._placed.get(work)
        if placed is None or placed.frame() is not frame or placed.arena is not self._arena:
            placed = self._place(work, frame)
            self._placed[work] = placed
        return placed

    def _place(self, work: _Work, frame: Frame) -> _Placed:
        plan = self._plan(work, frame)
        if self._arena.nbytes < plan.placement.arena_bytes:
            self._placed.clear()  # what points into the arena must not outlive it
            self._arena = _aligned_bytes(0)  # frees the old one before the new one is made
            self._arena = _allocated(plan.placement.arena_bytes, self._size)
        arena = self._arena.ctypes.data
        bases: dict[Storage, int] = {
            "arena": arena,
            "image": frame.image.ctypes.data,
            "restored": frame.restored.ctypes.data,
            "weights": (self._original if work.original else self._weights).ctypes.data,
            "gradients": self._gradients.ctypes.data,
        }
        constants = hold_constants(plan.program)
        memory = Memory(plan.program, bases, plan.placement.offsets, constants)
        scratch = [arena + offset for offset in plan.placement.scratch]
        bound = bind(plan.program, self._kernels, memory, scratch)
        return _Placed(bound, weakref.ref(frame), self._arena)

    def _plan(self, work: _Work, frame: Frame) -> Plan:
        size = (frame.image.shape[2], frame.image.shape[3])
        if size != self._size:
            self._plans.clear()
            self._placed.clear()
            self._size = size
        key = (work.graph, work.step_sizes is not None)
        known = self._plans.get(key)
        if known is not None and known[0].step_sizes == work.step_sizes:
            return known[1]
        if known is not None:  # one set of step sizes at a time
            self._placed.pop(known[0], None)
        steps = None if work.step_sizes is None else dict(work.step_sizes)
        plan = compile_graph(self._bundle, work.graph, *size, self._target, steps)
        self._plans[key] = (work, plan)
        return plan


StepSizes = tuple[tuple[str, float], ...]  # of each parameter in a scope


@dataclass(frozen=True)
class _Work:
    """A graph, the weights it is evaluated at, and the step that it takes, if any."""

    graph: str
    original: bool = False  # the bundle's own weights, not the session's
    step_sizes: StepSizes | None = None


@dataclass(frozen=True)
class _Placed:
    """A program bound to a frame and an arena.

    The frame is not held: the session frees it before it makes one of another size.
    """

    bound: Bound
    frame: weakref.ref[Frame]
    arena: U8

    def loss(self) -> float:
        """What the last run left in the arena."""
        begin = self.bound.memory.offsets["loss"]
        return float(self.arena[begin : begin + 4].view(np.float32)[0])


def _allocated(count: int, size: tuple[int, int]) -> U8:
    try:
        return _aligned_bytes(count)
    except MemoryError:
        raise BackendError(
            f"an image of {size[1]}x{size[0]} needs {count / 2**20:.0f} MiB, which this process "
            "does not get.",
            "give a smaller image, a smaller scope or a memory budget.",
        ) from None


def _aligned_bytes(count: int) -> U8:
    """Memory that begins at a multiple of the alignment; pages are taken when first touched."""
    raw: U8 = np.empty(count + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + count]
