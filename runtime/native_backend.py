"""The native engine: a bundle's graphs as planned, fused programs of compiled kernels."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.kernels.library import Team, open_library
from edgeadapt.runtime.backend import F32, EngineOptions, Frame, usable_cores
from edgeadapt.runtime.plan.bind import Bound, Kernels, bind
from edgeadapt.runtime.plan.compile import Plan, Target, check_rules, compile_graph
from edgeadapt.runtime.plan.ir import Storage
from edgeadapt.runtime.plan.memory import Memory, hold_constants

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
U8 = npt.NDArray[np.uint8]


class NativeBackend:
    """See `edgeadapt.runtime.backend.Backend`.

    A graph is planned when it is first asked for at a size; plans of other sizes are dropped then.
    All share one arena, as large as the largest needs: they never run at the same time.
    """

    def __init__(
        self, bundle: Bundle, weights: F32, gradients: F32, options: EngineOptions
    ) -> None:
        self._bundle, self._options = bundle, options
        self._weights, self._gradients = weights, gradients
        self._original = bundle.weights()  # what restore() uses while a session has others
        self._library = open_library()
        threads = options.threads or usable_cores()
        self._team: Team = self._library.team(threads)
        self._kernels = Kernels(self._library, self._library.levels[-1])
        self._target = Target(
            options.precision, options.memory_budget, self._kernels.scratch_bytes(threads)
        )
        self._size = (0, 0)
        self._plans: dict[str, Plan] = {}
        self._bound: dict[str, _Placed] = {}
        self._arena = _aligned_bytes(0)
        check_rules(bundle)

    def prepare(self, scope: str, frame: Frame) -> None:
        """Plan the scope's graph and the loss graph for images of this size."""
        self._find(f"adapt.{scope}", self._bundle.scope(scope).graph, frame, self._weights)
        self._find("loss", LOSS_GRAPH, frame, self._weights)

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights."""
        self._run("restore", RESTORE_GRAPH, frame, self._original)

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the weights in use."""
        self._run("restore_adapted", RESTORE_GRAPH, frame, self._weights)

    def loss(self, frame: Frame) -> float:
        """The loss at the session's weights; writes ``frame.restored`` too."""
        return self._loss_of(self._run("loss", LOSS_GRAPH, frame, self._weights))

    def gradients(self, scope: str, frame: Frame) -> float:
        """The loss at the session's weights; writes its gradients and ``frame.restored``."""
        graph = self._bundle.scope(scope).graph
        return self._loss_of(self._run(f"adapt.{scope}", graph, frame, self._weights))

    def _run(self, key: str, graph: str, frame: Frame, weights: F32) -> _Placed:
        placed = self._find(key, graph, frame, weights)
        self._library.run(placed.bound.calls, self._team)
        return placed

    def _find(self, key: str, graph: str, frame: Frame, weights: F32) -> _Placed:
        placed = self._bound.get(key)
        if placed is None or placed.frame() is not frame or placed.arena is not self._arena:
            placed = self._place(key, graph, frame, weights)
        return placed

    def _place(self, key: str, graph: str, frame: Frame, weights: F32) -> _Placed:
        plan = self._plan(graph, frame)
        if self._arena.nbytes < plan.placement.arena_bytes:
            self._bound.clear()  # what points into the arena must not outlive it
            self._arena = _aligned_bytes(0)  # frees the old one before the new one is made
            self._arena = _aligned_bytes(plan.placement.arena_bytes)
        arena = self._arena.ctypes.data
        bases: dict[Storage, int] = {
            "arena": arena,
            "image": frame.image.ctypes.data,
            "restored": frame.restored.ctypes.data,
            "weights": weights.ctypes.data,
            "gradients": self._gradients.ctypes.data,
        }
        constants = hold_constants(plan.program)
        memory = Memory(plan.program, bases, plan.placement.offsets, constants)
        scratch = [arena + offset for offset in plan.placement.scratch]
        bound = bind(plan.program, self._kernels, memory, scratch)
        self._bound[key] = _Placed(bound, weakref.ref(frame), self._arena)
        return self._bound[key]

    def _plan(self, graph: str, frame: Frame) -> Plan:
        size = (frame.image.shape[2], frame.image.shape[3])
        if size != self._size:
            self._plans.clear()
            self._bound.clear()
            self._size = size
        if graph not in self._plans:
            self._plans[graph] = compile_graph(self._bundle, graph, *size, self._target)
        return self._plans[graph]

    def _loss_of(self, placed: _Placed) -> float:
        begin = placed.bound.memory.offsets["loss"]
        return float(placed.arena[begin : begin + 4].view(np.float32)[0])


@dataclass(frozen=True)
class _Placed:
    """A program bound to a frame and an arena.

    The frame is not held: the session frees it before it makes one of another size.
    """

    bound: Bound
    frame: weakref.ref[Frame]
    arena: U8


def _aligned_bytes(count: int) -> U8:
    """Memory that begins at a multiple of the alignment; pages are taken when first touched."""
    raw: U8 = np.empty(count + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + count]
