"""ONNX Runtime, reading and writing memory that stays in place through IO binding.

On the CPU that is the session's own arrays. On a GPU the library's memory is used, and weights,
gradients and images are copied once each a run; the optimizer's step is taken on the host.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import onnxruntime

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.cast_rules import Precision as CastPrecision
from edgeadapt.casts import cast_graph
from edgeadapt.errors import BackendError, one_line
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.backend import EngineOptions, Evaluation, Frame, HostBackend, take_steps
from edgeadapt.runtime.onnxruntime_memory import DeviceMemory, HostMemory, Memory, Place
from edgeadapt.runtime.onnxruntime_providers import Asked, Kind, ask, check_opened
from edgeadapt.runtime.optimizer import F32, Optimizer
from edgeadapt.runtime.profile.onnx_profiler import OnnxProfiler, Opened

# Fatal only: what fails is raised, and the library would print it a second time.
_QUIET = 4
# Its search for GPUs warns on machines without one, before any session could say otherwise.
onnxruntime.set_default_logger_severity(_QUIET)


class OnnxRuntimeBackend(HostBackend):
    """See `edgeadapt.runtime.backend.Backend`. A graph is opened when it is first asked for.

    Args:
        stream: on a GPU, the address of a CUDA stream of the caller's, which outlives the backend
            and on which everything is enqueued; 0: one of the library's.
    """

    kind: Kind = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        weights: F32,
        gradients: F32,
        options: EngineOptions,
        *,
        stream: int = 0,
    ) -> None:
        if options.memory_budget is not None:
            raise BackendError(
                "ONNX Runtime cannot keep to a memory budget.",
                "leave it out, or use the backend native.",
            )
        self._asked = ask(self.kind, options.precision, bundle, onnxruntime, stream)
        self._bundle = bundle
        self._threads = options.threads
        self._options = _session_options(options.threads)
        self._memory = self._open_memory(weights, gradients)
        self._engines: dict[str, Any] = {}
        self._calls: dict[str, _Call] = {}

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """Open the scope's graph and the loss graph."""
        self._engine(self._bundle.scope(scope).graph)
        self._engine(LOSS_GRAPH)

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights."""
        if "restore" not in self._calls:
            self._calls["restore"] = self._call(RESTORE_GRAPH, weights=False)
        self._run("restore", frame, weights=False)

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the weights in use; what only the loss needs is skipped."""
        if "restore_adapted" not in self._calls:
            self._calls["restore_adapted"] = self._call(LOSS_GRAPH)
        self._run("restore_adapted", frame)

    def loss(self, frame: Frame) -> float:
        """The loss at the session's weights; writes ``frame.restored`` too."""
        if "loss" not in self._calls:
            self._calls["loss"] = self._call(LOSS_GRAPH, loss=True)
        self._run("loss", frame)
        return self._memory.loss_value()

    def gradients(self, scope: str, frame: Frame) -> float:
        """The loss at the session's weights; writes its gradients and ``frame.restored``."""
        key, found = f"adapt.{scope}", self._bundle.scope(scope)
        if key not in self._calls:
            self._calls[key] = self._call(found.graph, loss=True, gradients=found.parameters)
        self._run(key, frame, gradients=found.parameters)
        return self._memory.loss_value()

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

    def step_profiler(self, scope: str, frame: Frame, optimizer: Optimizer) -> OnnxProfiler:
        """Takes the time of each node of a step."""
        found = self._bundle.scope(scope)
        fetched = ["restored", "loss", *(GRADIENT_PREFIX + name for name in found.parameters)]

        def open_with(options: Any) -> Opened:
            twin = self._twin(options)
            return Opened(twin._engine(found.graph), lambda: twin.gradients(scope, frame), fetched)

        return OnnxProfiler(found.graph, _session_options(self._threads), open_with, optimizer)

    def restore_profiler(self, frame: Frame) -> OnnxProfiler:
        """Takes the time of each node of a restoration."""

        def open_with(options: Any) -> Opened:
            twin = self._twin(options)
            return Opened(twin._engine(RESTORE_GRAPH), lambda: twin.restore(frame), ["restored"])

        return OnnxProfiler(RESTORE_GRAPH, _session_options(self._threads), open_with, None)

    def _twin(self, options: Any) -> OnnxRuntimeBackend:
        """One that works in the same memory with sessions of its own.

        Raises:
            BackendError: on a GPU, where the library's profiler takes the time of launching alone.
        """
        if self.kind != "cpu":
            raise BackendError(
                "ONNX Runtime does not take the time of its operations on a GPU.",
                "profile with the backend cuda, or run under nsys.",
            )
        twin = copy(self)
        twin._options, twin._engines, twin._calls = options, {}, {}
        return twin

    def _open_memory(self, weights: F32, gradients: F32) -> Memory:
        if self.kind == "cpu":
            return HostMemory(self._bundle, weights, gradients)
        return DeviceMemory(self._bundle, weights, gradients, onnxruntime, self._asked.device)

    def _call(
        self,
        graph: str,
        *,
        weights: bool = True,
        loss: bool = False,
        gradients: tuple[str, ...] = (),
    ) -> _Call:
        memory = self._memory
        names = [row.name for row in self._bundle.manifest.parameters] if weights else []
        outputs = {GRADIENT_PREFIX + name: memory.gradient(name) for name in gradients}
        if loss:
            outputs["loss"] = memory.loss()
        inputs = {name: memory.weight(name) for name in names}
        return _Call(self._engine(graph), memory, inputs, outputs, self._asked)

    def _run(
        self, key: str, frame: Frame, *, weights: bool = True, gradients: tuple[str, ...] = ()
    ) -> None:
        height, width = frame.image.shape[2:]
        try:
            self._memory.send(frame, weights)
            self._calls[key].run(frame)
            self._memory.fetch(frame, gradients)
        except Exception as error:  # the library's errors share no base class
            raise BackendError(
                f"ONNX Runtime failed on an image of {width}x{height} ({one_line(error)}).",
                "if memory ran out, give a smaller image or a smaller scope.",
            ) from error

    def _engine(self, graph: str) -> Any:
        if graph not in self._engines:
            self._engines[graph] = self._open(graph)
        return self._engines[graph]

    def _open(self, graph: str) -> Any:
        file = self._bundle.path / graph
        source: str | bytes = str(file)
        if self._asked.precision in ("fp16", "bf16"):
            precision: CastPrecision = "fp16" if self._asked.precision == "fp16" else "bf16"
            source = cast_graph(self._bundle, graph, precision).SerializeToString()
        try:
            engine = onnxruntime.InferenceSession(
                source, self._options, providers=self._asked.providers()
            )
        except Exception as error:  # the library's errors share no base class
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot open {file} ({one_line(error)}).",
                "upgrade onnxruntime, or export the bundle with this version's edgeadapt.",
            ) from error
        check_opened(engine, self.kind)
        return engine


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """The same on an NVIDIA GPU, by the library's own kernels."""

    kind: Kind = "cuda"


class OnnxRuntimeTensorrtBackend(OnnxRuntimeBackend):
    """The same on an NVIDIA GPU, by engines that TensorRT builds for each size of image."""

    kind: Kind = "tensorrt"


class _Call:
    """One way to run a graph, with everything bound to fixed memory but the frame."""

    # Each way and frame records a graph of launches of its own.
    _numbers = itertools.count(1)

    def __init__(
        self,
        engine: Any,
        memory: Memory,
        inputs: Mapping[str, Place],
        outputs: Mapping[str, Place],
        asked: Asked,
    ) -> None:
        self._engine, self._memory, self._asked = engine, memory, asked
        self._binding = engine.io_binding()
        self._run_options = _run_options()
        # Not held: the session frees a frame before it makes one of another size, and would have
        # two in memory if a binding that is not in use kept the first.
        self._frame: weakref.ref[Frame] | None = None
        for name, place in inputs.items():
            self._binding.bind_input(name, *place)
        for name, place in outputs.items():
            self._binding.bind_output(name, *place)

    def run(self, frame: Frame) -> None:
        """Read and write what is bound, and the frame."""
        if self._frame is None or self._frame() is not frame:
            image, restored = self._memory.image(frame)
            self._binding.bind_input("image", *image)
            self._binding.bind_output("restored", *restored)
            self._frame = weakref.ref(frame)
            if self._asked.cuda_graph:
                self._run_options = _run_options()
                number = str(next(self._numbers))
                self._run_options.add_run_config_entry("gpu_graph_id", number)
        self._binding.synchronize_inputs()
        self._engine.run_with_iobinding(self._binding, self._run_options)
        self._binding.synchronize_outputs()


def _run_options() -> Any:
    options = onnxruntime.RunOptions()
    options.log_severity_level = _QUIET
    options.only_execute_path_to_fetches = True
    return options


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
