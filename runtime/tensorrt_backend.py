"""TensorRT for restoring, the CUDA engine for adapting: on the same buffers and the same stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, EngineWarning
from edgeadapt.runtime.backend import EngineOptions, Evaluation, Frame
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.frame import Screen
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.optimizer import F32, Optimizer
from edgeadapt.runtime.profile.cuda import LaunchProfiler
from edgeadapt.runtime.tensorrt import cache
from edgeadapt.runtime.tensorrt.build import Engine, Request, build_engine, engine_key, read_for
from edgeadapt.runtime.tensorrt.engine_file import read_engine
from edgeadapt.runtime.tensorrt.execution import BoundEngine, OpenEngine
from edgeadapt.runtime.tensorrt.library import Library, find_library
from edgeadapt.runtime.tensorrt.models import WEIGHTS, Weights
from edgeadapt.runtime.tensorrt.target import check_target


class TensorrtBackend(CudaBackend):
    """See `edgeadapt.runtime.backend.Backend`.

    What `restore` and `restore_adapted` compute, an engine computes; everything else is as in
    `CudaBackend`. The engine of an image size is opened with the frame: the file that the options
    name, else what the cache has, else a new one. Its weights, where it takes them, are refreshed
    on the device after they have changed.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: F32,
        gradients: F32,
        options: EngineOptions,
        device: Device | None = None,
        library: Library | None = None,
    ) -> None:
        # Read before the GPU is opened: a wrong file is refused at once.
        self._given = None if options.engine is None else _weights_of(Path(options.engine))
        self._library = library or find_library()
        self._bound: BoundEngine | None = None
        self._weights_mode = ""
        self._version = 1  # of the session's weights; 0 is the bundle's own
        super().__init__(bundle, weights, gradients, options, device)

    def open_frame(self, height: int, width: int) -> Frame:
        """A frame on the device, and the engine of its size; see `CudaBackend`."""
        frame = super().open_frame(height, width)
        self._open((height, width))
        return frame

    def weights_changed(self) -> None:
        """They are uploaded, and given to the engine, before they are used again."""
        self._version += 1
        super().weights_changed()

    def prepare(self, scope: str, frame: Frame, optimizer: Optimizer) -> None:
        """See `CudaBackend`; an engine of constant weights is refused."""
        self._open((frame.image.shape[2], frame.image.shape[3]))
        self._refuse_constant("adapt")
        super().prepare(scope, frame, optimizer)

    def restore(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the bundle's own weights."""
        self._restore(frame, original=True)

    def restore_adapted(self, frame: Frame) -> None:
        """Write ``frame.restored`` from the weights in use."""
        self._restore(frame, original=False)

    def step(self, scope: str, frame: Frame, optimizer: Optimizer) -> float:
        """See `CudaBackend`."""
        self._version += 1
        return super().step(scope, frame, optimizer)

    def adapt(
        self, scope: str, frame: Frame, optimizer: Optimizer, steps: int, each: bool
    ) -> Iterator[Evaluation]:
        """See `CudaBackend`."""
        self._version += bool(steps)
        yield from super().adapt(scope, frame, optimizer, steps, each)

    def restore_profiler(self, frame: Frame) -> LaunchProfiler:
        """Refused: what runs within an engine is TensorRT's own, not the CUDA engine's program."""
        raise BackendError(
            "the backend tensorrt does not take the time of an engine's operations.",
            "--backend cuda does; the whole restoration is timed by `edgeadapt bench peers`.",
        )

    def close(self) -> None:
        """Give the device back."""
        self._close_engine()
        super().close()

    def _restore(self, frame: Frame, original: bool) -> None:
        self._wait()
        size = (frame.image.shape[2], frame.image.shape[3])
        bound = self._open(size)
        if not original:
            self._refuse_constant("restore with adapted weights")
        self._begin(frame)
        if original:
            bound.use_weights(self._flat.original, 0)
        else:
            bound.use_weights(self._flat.weights, self._version)
        bound.run()
        self._end(frame)

    def _open(self, size: tuple[int, int]) -> BoundEngine:
        """The engine of a size, bound to its screen."""
        screen = self._resized(size)
        if self._bound is None:
            engine = self._engine(size)
            opened = OpenEngine(self._library, self._device, engine)
            given = {"image": screen.image, "restored": screen.restored}
            self._bound = BoundEngine(self._device, opened, self._bundle, given)
            self._weights_mode = opened.weights
        return self._bound

    def _engine(self, size: tuple[int, int]) -> Engine:
        """From the file that was named, the cache, or built now."""
        info = self._device.info
        if self._options.engine is not None and self._given is not None:
            path = Path(self._options.engine)
            request = Request(size, self._options.precision, self._given)
            wanted = engine_key(self._bundle, request, self._library, info.capability, info)
            return read_for(path, wanted, self._bundle)
        request = Request(size, self._options.precision)
        check_target(self._library, info.capability, info)
        key = engine_key(self._bundle, request, self._library, info.capability, info)
        if not cache.engine_path(key).exists():
            text = f"{self._library.title} builds an engine for {size[1]}x{size[0]}, which is kept"
            warnings.warn(f"{text}: {cache.engine_path(key)}", EngineWarning, stacklevel=4)
        return build_engine(self._bundle, request, self._library, info.capability, self._device)

    def _refuse_constant(self, what: str) -> None:
        if self._weights_mode == "constant":
            raise BackendError(
                f"the engine cannot {what}: its weights are constant, it is for K = 0 only.",
                "build one with --weights inputs, or use --backend cuda.",
            )

    def _resized(self, size: tuple[int, int]) -> Screen:
        """See `CudaBackend`; the engine of another size is closed."""
        if self._screen is not None and self._screen.size != size:
            self._close_engine()
        return super()._resized(size)

    def _close_engine(self) -> None:
        bound, self._bound = self._bound, None
        if bound is not None:
            try:
                self._device.synchronize()
                bound.close()
            except BackendError:  # the device may have failed long before
                return


def _weights_of(path: Path) -> Weights:
    """How the engine has its weights; any way will do."""
    found = read_engine(path)[0].key.weights
    return next((weights for weights in WEIGHTS if weights == found), "inputs")
