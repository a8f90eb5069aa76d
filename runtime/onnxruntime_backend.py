"""ONNX Runtime on the CPU, reading and writing the session's arrays in place through IO binding."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import BackendError, one_line
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.backend import EngineOptions, Evaluation, Frame, HostBackend, take_steps
from edgeadapt.runtime.optimizer import F32, Optimizer

# Fatal only: what fails is raised, and the library would print it a second time.
_QUIET = 4
# Its search for GPUs warns on machines without one, before any session could say otherwise.
onnxruntime.set_default_logger_severity(_QUIET)


class OnnxRuntimeBackend(HostBackend):
    """See `edgeadapt.runtime.backend.Backend`. A graph is opened when it is first asked for."""

    def __init__(
        self, bundle: Bundle, weights: F32, gradients: F32, options: EngineOptions
    ) -> None:
        _refuse_what_only_native_has(options)
        self._bundle = bundle
        self._options = _session_options(options.threads)
        self._loss = np.zeros((), np.float32)
        self._weights = _views(bundle, weights)
        self._gradients = _views(bundle, gradients)
        self._engines: dict[str, Any] = {}
        self._calls: dict[str, _Call] = {}

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """Open the scope's graph and the loss graph."""
        self._engine(self._bundle.scope(scope).graph)
        self._engine(LOSS_GRAPH)

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights."""
        if "restore" not in self._calls:
            self._calls["restore"] = _Call(self._engine(RESTORE_GRAPH), {}, {})
        self._calls["restore"].run(frame)

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the weights in use; what only the loss needs is skipped."""
        if "restore_adapted" not in self._calls:
            self._calls["restore_adapted"] = _Call(self._engine(LOSS_GRAPH), self._weights, {})
        self._calls["restore_adapted"].run(frame)

    def loss(self, frame: Frame) -> float:
        """The loss at the session's weights; writes ``frame.restored`` too."""
        if "loss" not in self._calls:
            outputs = {"loss": self._loss}
            self._calls["loss"] = _Call(self._engine(LOSS_GRAPH), self._weights, outputs)
        self._calls["loss"].run(frame)
        return float(self._loss)

    def gradients(self, scope: str, frame: Frame) -> float:
        """The loss at the session's weights; writes its gradients and ``frame.restored``."""
        key = f"adapt.{scope}"
        if key not in self._calls:
            found = self._bundle.scope(scope)
            outputs = {GRADIENT_PREFIX + name: self._gradients[name] for name in found.parameters}
            outputs["loss"] = self._loss
            self._calls[key] = _Call(self._engine(found.graph), self._weights, outputs)
        self._calls[key].run(frame)
        return float(self._loss)

    def step(self, scope: str, frame: Frame, optimizer: Optimizer) -> float:
        """The gradients, then the optimizer's step."""
        loss = self.gradients(scope, frame)
        optimizer.step()
        return loss

    def adapt(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, each: bool
    ) -> Iterator[Evaluation]:
        """One step after the other, then the loss."""
        return take_steps(self, scope, frame, optimizer, steps)

    def _engine(self, graph: str) -> Any:
        if graph not in self._engines:
            file = self._bundle.path / graph
            try:
                self._engines[graph] = onnxruntime.InferenceSession(
                    str(file), self._options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # the library's errors share no base class
                version = onnxruntime.__version__
                raise BackendError(
                    f"ONNX Runtime {version} cannot open {file} ({one_line(error)}).",
                    "upgrade onnxruntime, or export the bundle with this version's edgeadapt.",
                ) from error
        return self._engines[graph]


class _Call:
    """One way to run a graph, with everything bound to fixed memory but the frame."""

    def __init__(self, engine: Any, inputs: Mapping[str, F32], outputs: Mapping[str, F32]) -> None:
        self._engine = engine
        self._binding = engine.io_binding()
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = _QUIET
        self._run_options.only_execute_path_to_fetches = True
        # Not held: the session frees a frame before it makes one of another size, and would have
        # two in memory if a binding that is not in use kept the first.
        self._frame: weakref.ref[Frame] | None = None
        for name, array in inputs.items():
            self._binding.bind_input(name, *_memory(array))
        for name, array in outputs.items():
            self._binding.bind_output(name, *_memory(array))

    def run(self, frame: Frame) -> None:
        if self._frame is None or self._frame() is not frame:
            self._binding.bind_input("image", *_memory(frame.image))
            self._binding.bind_output("restored", *_memory(frame.restored))
            self._frame = weakref.ref(frame)
        try:
            self._engine.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # the library's errors share no base class
            height, width = frame.image.shape[2:]
            raise BackendError(
                f"ONNX Runtime failed on an image of {width}x{height} ({one_line(error)}).",
                "if memory ran out, give a smaller image or a smaller scope.",
            ) from error


def _refuse_what_only_native_has(options: EngineOptions) -> None:
    if options.precision != "fp32":
        raise BackendError(
            f"ONNX Runtime runs the bundle's graphs in fp32, not {options.precision}.",
            "leave out the precision, or use the backend native.",
        )
    if options.memory_budget is not None:
        raise BackendError(
            "ONNX Runtime cannot keep to a memory budget.",
            "leave it out, or use the backend native.",
        )


def _session_options(threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: one for each physical core
    options.inter_op_num_threads = 1  # the graphs are chains: nothing to run side by side
    options.log_severity_level = _QUIET
    # With symbolic sizes, looking for buffers to share takes most of the time a session needs to
    # open (8 s of 9 for a backward pass), and planning from the first run's sizes doubles the peak.
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.use_deterministic_compute = True  # reset() and the same call must give the same bits
    return options


def _views(bundle: Bundle, flat: F32) -> dict[str, F32]:
    shapes = {row.name: row.shape for row in bundle.manifest.parameters}
    return {name: flat[part].reshape(shapes[name]) for name, part in bundle.offsets().items()}


def _memory(array: F32) -> tuple[str, int, type[np.float32], tuple[int, ...], int]:
    """Device, its number, type, shape and address: what a binding wants to know."""
    return "cpu", 0, np.float32, array.shape, array.ctypes.data
