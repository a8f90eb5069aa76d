"""The CUDA engine: a bundle's graphs as planned, fused programs of kernels on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import EngineOptions, Evaluation, Frame, take_steps
from edgeadapt.runtime.cuda.calls import OWN, Makers, packed_elements, scratch_asker
from edgeadapt.runtime.cuda.cudnn_calls import makers_with, open_engines
from edgeadapt.runtime.cuda.cudnn_choice import Engines
from edgeadapt.runtime.cuda.device import Device, Event
from edgeadapt.runtime.cuda.fitting import compile_within
from edgeadapt.runtime.cuda.flat import Flat
from edgeadapt.runtime.cuda.frame import DeviceFrame, Screen
from edgeadapt.runtime.cuda.optimizer import AdamState, kind_of
from edgeadapt.runtime.cuda.placed import Placed
from edgeadapt.runtime.cuda.plan import Choose, DevicePlan, Target, as_it_is
from edgeadapt.runtime.optimizer import F32, Adam, Optimizer, Sgd
from edgeadapt.runtime.plan.compile import check_rules
from edgeadapt.runtime.plan.ir import Storage
from edgeadapt.runtime.profile.cuda import LaunchProfiler

_HEADROOM_BYTES = 8 * 2**20  # beside the arena: for tables, constants and recorded graphs
_LEAST_LOSSES = 64  # room for so many before memory is made anew


class CudaBackend:
    """See `edgeadapt.runtime.backend.Backend`.

    Weights and gradients are copies on the device: uploaded after the session has changed them,
    downloaded before a method that changes them returns. Every method waits for the device before
    it returns. A graph is planned when it is first asked for at a size; plans of other sizes are
    dropped then. All share one arena. What runs is recorded the first time and then replayed, the
    K steps of an adaptation as one graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: F32,
        gradients: F32,
        options: EngineOptions,
        device: Device | None = None,
        makers: Makers = OWN,
        choose: Choose = as_it_is,
    ) -> None:
        check_rules(bundle)
        self._bundle, self._options = bundle, options
        self._engines: Engines | None = None
        if device is None:
            device = _gpu()
            self._engines = open_engines(device)
        if self._engines is not None:
            makers, choose = makers_with(self._engines), self._engines.choose
        self._makers, self._choose, self._device = makers, choose, device
        self._flat = Flat(device, bundle, weights, gradients)
        self._adam = AdamState(device, weights.size)
        self._optimizer: weakref.ref[Optimizer] | None = None  # whose state is on the device
        self._pending = False  # something may still be running
        self._screen: Screen | None = None
        self._arena, self._arena_bytes = 0, 0
        self._losses, self._loss_count = 0, 0
        self._loss_host = self._losses_host = device.pinned((1,), np.float32).array
        self._plans: dict[tuple[str, str], DevicePlan] = {}
        self._placed: dict[_Work, Placed] = {}
        self._marks: list[Event] | None = None  # moments of the run that is profiled

    @property
    def device(self) -> Device:
        """What it runs on: whoever takes times asks it for moments on its own clock."""
        return self._device

    def open_frame(self, height: int, width: int) -> Frame:
        """A frame on the device; one made before cannot be used any more."""
        self._wait()
        return DeviceFrame.of(self._resized((height, width)))

    def weights_changed(self) -> None:
        """They are uploaded before they are used again."""
        self._flat.stale = True

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """Plan the scope's step and the loss graph for images of this size."""
        self._wait()
        self._find(frame, self._step_work(scope, optimizer), _Work(LOSS_GRAPH))

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights."""
        self._evaluate(_Work(RESTORE_GRAPH, original=True), frame)

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the weights in use."""
        self._evaluate(_Work(RESTORE_GRAPH), frame)

    def loss(self, frame: Frame) -> float:
        """The loss at the session's weights; writes ``frame.restored`` too."""
        return self._evaluate(_Work(LOSS_GRAPH), frame)

    def gradients(self, scope: str, frame: Frame) -> float:
        """The loss at the session's weights; writes its gradients and ``frame.restored``."""
        return self._evaluate(_Work(self._bundle.scope(scope).graph), frame, scope)

    def step(self, scope: str, frame: Frame, optimizer: Optimizer) -> float:
        """One step, with its update on the device for SGD and Adam."""
        if not kind_of(optimizer):
            loss = self.gradients(scope, frame)
            optimizer.step()
            self._flat.stale = True
            return loss
        return self._take_steps(scope, frame, optimizer, 1)[0][0]

    def adapt(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, each: bool
    ) -> Iterator[Evaluation]:
        """All steps as one graph, unless each is looked at."""
        if each or not steps or not kind_of(optimizer):
            yield from take_steps(self, scope, frame, optimizer, steps)
            return
        losses, seconds = self._take_steps(scope, frame, optimizer, steps, evaluate=True)
        for loss in losses[:-1]:
            yield Evaluation(loss, seconds / steps, settled=False)
        yield Evaluation(losses[-1])

    def step_profiler(self, scope: str, frame: Frame, optimizer: Optimizer) -> LaunchProfiler:
        """Takes the time of each operation of a step, outside of a graph."""
        return self._profiler(
            self._step_work(scope, optimizer), frame, lambda: self.step(scope, frame, optimizer)
        )

    def restore_profiler(self, frame: Frame) -> LaunchProfiler:
        """Takes the time of each operation of a restoration, outside of a graph."""
        work = _Work(RESTORE_GRAPH, original=True)
        return self._profiler(work, frame, lambda: self.restore(frame))

    def _profiler(self, work: _Work, frame: Frame, method: Callable[[], object]) -> LaunchProfiler:
        self._wait()
        program = self._find(frame, work)[0].plan.program

        def run() -> list[Event]:
            marks: list[Event] = []
            self._marks = marks
            try:
                method()
            finally:
                self._marks = None
            return marks

        return LaunchProfiler(work.graph, program, run)

    def close(self) -> None:
        """Give the device back."""
        with suppress(BackendError):  # it may have failed long before
            self._forget()
        if self._engines is not None:
            self._engines.close()
        self._device.close()

    def _evaluate(self, work: _Work, frame: Frame, scope: str = "") -> float:
        """Run a program and download what it gives: of a scope, gradients."""
        self._wait()
        (placed,) = self._find(frame, work)
        self._begin(frame)
        self._launch(placed)
        if scope:
            self._flat.download_gradients()
        has_loss = "loss" in placed.plan.program.outputs
        if has_loss:
            self._device.download(self._loss_host, placed.memory.address("loss"))
        self._end(frame)
        if scope:
            self._flat.give_gradients(scope, placed.plan.gradient_factor)
        return float(self._loss_host[0]) if has_loss else 0.0

    def _take_steps(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, evaluate: bool = False
    ) -> tuple[list[float], float]:
        """Run the steps and perhaps the loss after them; the losses, and seconds of the steps."""
        self._wait()
        self._reserve_losses(steps + 1)
        placed, last = self._find(frame, self._step_work(scope, optimizer), _Work(LOSS_GRAPH))
        if self._marks is None:  # recorded before, not between the moments that are compared
            placed.graph(steps, self._losses)
            last.graph(0)
        losses = self._losses_host[: steps + evaluate]
        self._begin(frame)
        self._use(optimizer, placed)
        before = self._device.mark()
        self._launch(placed, steps)
        after = self._device.mark()
        if evaluate:
            self._launch(last)
            self._device.copy(self._losses + 4 * steps, last.memory.address("loss"), 4)
        else:  # of an adaptation, nobody asks for them
            self._flat.download_gradients()
        self._device.download(losses, self._losses)
        self._flat.download_weights()
        self._end(frame)
        if not evaluate:
            self._flat.give_gradients(scope, placed.plan.gradient_factor)
        self._flat.give_weights()
        return losses.tolist(), after.seconds_since(before)

    def _use(self, optimizer: Optimizer, placed: Placed) -> None:
        """Let the next steps be those of ``optimizer``."""
        assert isinstance(optimizer, Sgd | Adam)
        if self._optimizer is None or self._optimizer() is not optimizer:
            self._adam.clear()
            self._optimizer = weakref.ref(optimizer)
        placed.use_step_sizes(optimizer.step_sizes)

    def _launch(self, placed: Placed, steps: int = 0) -> None:
        """Run a program once, or as ``steps``, as a graph; while it is profiled, without one."""
        if self._marks is None:
            placed.graph(steps, self._losses if steps else 0).launch()
            return
        self._marks += placed.run_marked()
        if steps:
            self._device.copy(self._losses, placed.memory.address("loss"), 4)

    def _begin(self, frame: Frame) -> None:
        """Bring weights and image to the device."""
        self._pending = True
        if self._marks is not None:
            self._marks.append(self._device.mark())
        self._flat.upload_weights()
        if not isinstance(frame, DeviceFrame):
            assert self._screen is not None
            self._device.upload(self._screen.image, frame.image)

    def _end(self, frame: Frame) -> None:
        """Bring the restoration to a frame of the host, and wait."""
        if not isinstance(frame, DeviceFrame):
            assert self._screen is not None
            self._device.download(frame.restored, self._screen.restored)
        if self._marks is not None:
            self._marks.append(self._device.mark())
        self._device.synchronize()
        self._pending = False

    def _wait(self) -> None:
        """Wait for what was interrupted: it still reads and writes the host's arrays."""
        if self._pending:
            self._device.synchronize()
            self._pending = False

    def _step_work(self, scope: str, optimizer: Optimizer) -> _Work:
        found, kind = self._bundle.scope(scope), kind_of(optimizer)
        return _Work(found.graph, scope=scope if kind else "", optimizer=kind)

    def _find(self, frame: Frame, *works: _Work) -> list[Placed]:
        """Programs bound to memory, all at the same time."""
        screen = self._resized((frame.image.shape[2], frame.image.shape[3]))
        assert not isinstance(frame, DeviceFrame) or frame.screen is screen, "another was opened"
        plans = [self._plan(work, screen.size) for work in works]
        needed = max(plan.placement.arena_bytes for plan in plans)
        if needed > self._arena_bytes:
            self._forget()
            self._free_arena()
            self._arena = self._device.allocate(needed)
            self._arena_bytes = needed
        for work, plan in zip(works, plans, strict=True):
            if work not in self._placed:
                self._placed[work] = self._place(work, plan, screen)
        return [self._placed[work] for work in works]

    def _place(self, work: _Work, plan: DevicePlan, screen: Screen) -> Placed:
        bases: dict[Storage, int] = {
            "arena": self._arena,
            "image": screen.image,
            "restored": screen.restored,
            "weights": self._flat.original if work.original else self._flat.weights,
            "gradients": self._flat.gradients,
        }
        return Placed(self._device, plan, bases, self._makers, self._adam)

    def _plan(self, work: _Work, size: tuple[int, int]) -> DevicePlan:
        key = (work.graph, work.optimizer)
        if key not in self._plans:
            asker, options = scratch_asker(self._makers), self._options
            target = Target(
                packed_elements, asker, options.precision, options.memory_budget, self._choose
            )
            updated = self._bundle.scope(work.scope).parameters if work.scope else ()
            free = self._device.free_bytes() + self._arena_bytes - _HEADROOM_BYTES
            self._plans[key] = compile_within(
                max(free, 0), self._bundle, work.graph, size, target, updated, work.optimizer
            )
        return self._plans[key]

    def _resized(self, size: tuple[int, int]) -> Screen:
        """The screen of this size; what belongs to another is dropped."""
        if self._screen is None or self._screen.size != size:
            self._forget()
            self._plans.clear()
            if self._screen is not None:
                self._screen.close()
                self._screen = None
            self._screen = Screen(self._device, *size)
        return self._screen

    def _reserve_losses(self, count: int) -> None:
        if count > self._loss_count:
            self._forget()
            if self._losses:
                self._device.free(self._losses)
                self._losses, self._loss_count = 0, 0
            room = max(2 * count, _LEAST_LOSSES)
            self._losses_host = self._device.pinned((room,), np.float32).array
            self._losses, self._loss_count = self._device.allocate(4 * room), room

    def _forget(self) -> None:
        """Drop programs that are bound to memory, and the graphs recorded of them.

        Nothing is running afterwards, a picture's conversion included: memory may be freed.
        """
        self._device.synchronize()
        self._pending = False
        while self._placed:
            self._placed.popitem()[1].close()

    def _free_arena(self) -> None:
        if self._arena_bytes:
            self._device.free(self._arena)
            self._arena, self._arena_bytes = 0, 0


class _Work(NamedTuple):
    """A graph, the weights it is evaluated at, and the step that a scope takes, if any."""

    graph: str
    original: bool = False  # the bundle's own weights, not the session's
    scope: str = ""
    optimizer: str = ""


def _gpu() -> Device:
    """The first GPU; what it takes is imported here.

    Raises:
        BackendError: if there is none, or something is missing.
    """
    from edgeadapt.runtime.cuda.pycuda_device import open_device

    return open_device()
