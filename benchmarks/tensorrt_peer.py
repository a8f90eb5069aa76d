"""TensorRT as a peer of the CUDA engine on the same GPU: it restores, and takes the steps too."""

from __future__ import annotations

import numpy as np

from edgeadapt.benchmarks.cuda_peers import CudaPeer
from edgeadapt.benchmarks.peers import U8
from edgeadapt.bundle import Bundle
from edgeadapt.runtime.backend import PRECISIONS, EngineOptions, Precision
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.flat import Flat
from edgeadapt.runtime.optimizer import Adam, Sgd
from edgeadapt.runtime.tensorrt.build import Request, build_engine
from edgeadapt.runtime.tensorrt.execution import OpenEngine
from edgeadapt.runtime.tensorrt.library import Library
from edgeadapt.runtime.tensorrt.steps import Memory, StepEngine
from edgeadapt.runtime.tensorrt_backend import TensorrtBackend

NAME = "tensorrt"


def tensorrt_names() -> list[str]:
    """TensorRT in every precision."""
    return [NAME if precision == "fp32" else f"{NAME} {precision}" for precision in PRECISIONS]


class TensorrtPeer(CudaPeer):
    """An engine of the restore graph, and one of the scope's adapt graph for the steps."""

    def __init__(
        self,
        bundle: Bundle,
        picture: U8,
        scope: str,
        steps: int,
        precision: Precision,
        device: Device,
        library: Library,
    ) -> None:
        self._library = library
        super().__init__(bundle, picture, scope, steps, precision, device)
        try:
            self._stepper = self._open_steps(precision)
        except BaseException:
            super().close()
            raise
        self._loss = self._device.pinned((1,), np.float32).array
        self._warm = False

    def step(self) -> float:
        """One step."""
        self._run(1)
        self._given.download_gradients()
        self._device.download(self._loss, self._stepper.loss)
        self._device.synchronize()
        self._given.give_gradients(self._scope, 1.0)
        return float(self._loss[0])

    def seconds(self, operation: str) -> float | None:
        """See `TimedPeer`; an adaptation ends with the loss, of which there is no engine here."""
        return None if operation == "adapt" else super().seconds(operation)

    def close(self) -> None:
        """Give the memory back; the device is another's."""
        self._device.synchronize()
        self._stepper.close()
        super().close()

    def _make_engine(self, options: EngineOptions) -> TensorrtBackend:
        arrays = (self._weights, self._flat)
        return TensorrtBackend(self._bundle, *arrays, options, self._device, self._library)

    def _open_steps(self, precision: Precision) -> StepEngine:
        screen, device = self._frame.screen, self._device  # type: ignore[attr-defined]
        request = Request(screen.size, precision, "inputs", f"adapt.{self._scope}")
        target = device.info.capability
        engine = build_engine(self._bundle, request, self._library, target, device)
        self._given = Flat(device, self._bundle, self._weights, self._flat)
        memory = Memory(screen.image, screen.restored, self._given.weights, self._given.gradients)
        assert isinstance(self._optimizer, Sgd | Adam)
        opened = OpenEngine(self._library, device, engine)
        return StepEngine(device, opened, self._bundle, self._scope, memory, self._optimizer)

    def _run(self, steps: int) -> float:
        """Take the steps; seconds of one."""
        self._given.upload_weights()
        if not self._warm:
            self._stepper.warm_up()
            self._warm = True
        graph = self._stepper.graph(steps)
        before = self._device.mark()
        graph.launch()
        after = self._device.mark()
        return after.seconds_since(before) / steps

    def _adapt(self) -> float:
        """K steps as one graph; seconds of one step."""
        return self._run(self._steps)
