"""The CUDA engine as a peer of PyTorch on the same GPU: what both can do, and how it is timed.

An image is on the GPU before a time begins, and everything is done when it ends. Uploads and
downloads are timed by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import numpy as np

from edgeadapt.benchmarks.peers import F32, PAUSE_SECONDS, U8, Peer
from edgeadapt.bundle import Bundle
from edgeadapt.image import padded_size
from edgeadapt.runtime.backend import PRECISIONS, EngineOptions, Precision
from edgeadapt.runtime.cuda.calls import OWN, packed_elements, scratch_asker
from edgeadapt.runtime.cuda.device import Device, DeviceInfo
from edgeadapt.runtime.cuda.devices import DeviceFigures, device_names, find_device
from edgeadapt.runtime.cuda.plan import Target, compile_graph
from edgeadapt.runtime.cuda.roofline import roofline
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.optimizer import make_optimizer

OURS, TORCH = "cuda", "torch"
# What `TimedPeer.seconds` takes. "step" is one of the K of "adapt", without what is around them.
OPERATIONS = ("step", "adapt", "restore", "upload", "download")
Timings = Mapping[tuple[str, str], float]  # (peer, operation) -> milliseconds


class TimedPeer(Peer, Protocol):
    """A peer that knows when its GPU is done."""

    def seconds(self, operation: str) -> float | None:
        """Do one of `OPERATIONS`; None if this peer has none such."""

    @property
    def peak_bytes(self) -> int:
        """The most memory of the GPU that was held at once, libraries' own left out."""


class CountedDevice:
    """A device that remembers how much memory was held, and how long the CPU was busy with it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sizes: dict[int, int] = {}
        self.peak_bytes = 0
        self.waited = 0.0  # CPU seconds in `synchronize`, which spins

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def allocate(self, nbytes: int) -> int:
        """See `Device`."""
        address = self._device.allocate(nbytes)
        self._sizes[address] = nbytes
        self.peak_bytes = max(self.peak_bytes, sum(self._sizes.values()))
        return address

    def free(self, address: int) -> None:
        """See `Device`."""
        self._sizes.pop(address, None)
        self._device.free(address)

    def synchronize(self) -> None:
        """See `Device`."""
        begin = time.thread_time()
        self._device.synchronize()
        self.waited += time.thread_time() - begin


class CudaPeer:
    """The CUDA engine with a frame on the device, as a session uses it."""

    def __init__(
        self,
        bundle: Bundle,
        picture: U8,
        scope: str,
        steps: int,
        precision: Precision,
        device: Device,
    ) -> None:
        self._bundle, self._scope, self._steps, self._picture = bundle, scope, steps, picture
        self._weights = bundle.weights()
        self._flat = np.zeros_like(self._weights)
        self._device = CountedDevice(device)
        options = EngineOptions(precision=precision)
        self._engine = self._make_engine(options)
        multiple = bundle.manifest.image.size_multiple
        self._multiple = multiple
        height, width = picture.shape[:2]
        self._frame = self._engine.open_frame(*padded_size(height, width, multiple))
        self._frame.put(picture, multiple)
        self._optimizer = make_optimizer(bundle, self._weights, self._flat, scope, None)
        self.cpu_seconds = 0.0  # of the last adaptation

    def step(self) -> float:
        """One step."""
        return self._engine.step(self._scope, self._frame, self._optimizer)

    def restore(self) -> F32:
        """The restored image, of the padded size."""
        self._engine.restore(self._frame)
        shape = self._frame.restored.shape
        found = np.empty(shape, np.float32)
        self._device.download(found, self._frame.screen.restored)  # type: ignore[attr-defined]
        self._device.synchronize()
        return found

    def gradients(self) -> Mapping[str, F32]:
        """Views of the flat array."""
        return self._bundle.named(self._flat, self._scope)

    def seconds(self, operation: str) -> float | None:
        """See `TimedPeer`."""
        if operation == "step":
            return self._adapt()
        begin = time.perf_counter()
        if operation == "adapt":
            self._adapt()
        elif operation == "restore":
            self._engine.restore(self._frame)
        elif operation == "upload":
            self._frame.put(self._picture, self._multiple)
            self._device.synchronize()
        else:
            self._frame.get(*self._picture.shape[:2])
        return time.perf_counter() - begin

    @property
    def peak_bytes(self) -> int:
        """All that was allocated: arena, weights, gradients, images, tables."""
        return self._device.peak_bytes

    def close(self) -> None:
        """Give the memory back; the device is another's."""
        self._engine.close()

    def _make_engine(self, options: EngineOptions) -> CudaBackend:
        return CudaBackend(self._bundle, self._weights, self._flat, options, self._device)

    def _adapt(self) -> float:
        """K steps as one graph and the loss after them; seconds of one step."""
        waited, begin = self._device.waited, time.thread_time()
        found = list(
            self._engine.adapt(self._scope, self._frame, self._optimizer, self._steps, each=False)
        )
        self.cpu_seconds = time.thread_time() - begin - (self._device.waited - waited)
        return found[0].seconds


def our_names() -> list[str]:
    """This engine in every precision."""
    return [OURS if precision == "fp32" else f"{OURS} {precision}" for precision in PRECISIONS]


def torch_variants(compiled: bool) -> list[str]:
    """PyTorch's ways on a GPU, the reference first: layouts, 16 bits, replayed graphs, compiler."""
    layouts = ["", " channels-last", " channels-last fp16", " channels-last bf16"]
    found = [f"{TORCH}{layout}" for layout in layouts]
    found += [f"{TORCH} graph{layout}" for layout in layouts]
    if compiled:
        found += [f"{TORCH} compile{layout}" for layout in layouts[1:]]
    return found


def precision_of(name: str) -> Precision:
    """The last word of a peer's name, if it is a precision."""
    return next((p for p in PRECISIONS if name.endswith(f" {p}")), "fp32")


def is_rough(name: str) -> bool:
    """Whether a peer computes in fewer bits than float32."""
    return precision_of(name) != "fp32"


def medians(peers: Mapping[str, TimedPeer], repeats: int) -> Timings:
    """Median milliseconds of each operation; everyone in turn, after one round that warms up."""
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(repeats + 1):
        for operation in OPERATIONS:
            for name, peer in peers.items():
                time.sleep(PAUSE_SECONDS / 10)
                seconds = peer.seconds(operation)
                if number and seconds is not None:
                    found.setdefault((name, operation), []).append(seconds)
    return {key: 1e3 * median(values) for key, values in found.items()}


def figures_of(info: DeviceInfo) -> DeviceFigures | None:
    """What is known of a GPU: one of its kind and size whose name says nothing else."""
    for key in device_names():
        figures = find_device(key)
        same = figures.compute_capability == info.capability
        words = {word.lower() for word in figures.name.replace("Jetson", "").split()}
        named = {word.lower() for word in info.name.replace("NVIDIA", "").split()}
        if same and figures.multiprocessors == info.multiprocessors and named & words:
            return figures
    return None


def least_ms(
    bundle: Bundle,
    graph: str,
    size: tuple[int, int],
    precision: Precision,
    figures: DeviceFigures,
    updated: Sequence[str] = (),
) -> float:
    """The roofline of our plan for an image of ``size`` on a device, in milliseconds."""
    kind = bundle.manifest.adaptation.optimizer
    target = Target(packed_elements, scratch_asker(OWN), precision)
    plan = compile_graph(bundle, graph, *size, target, updated, kind)
    return 1e3 * roofline(plan.program, figures, precision).seconds
