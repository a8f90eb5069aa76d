"""An engine on a device: opened, bound to memory, and put on the device's stream.

TensorRT wants every tensor's address at a multiple of 256 bytes (`setTensorAddress` of its C++ API
says so), which parameters of the flat array are not at. So those that an engine takes are copied
within the device into memory of its own, when they have changed: one launch of a recorded graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.cuda.device import ALIGNMENT, Device, Graph, Span
from edgeadapt.runtime.tensorrt import cache
from edgeadapt.runtime.tensorrt.build import Engine
from edgeadapt.runtime.tensorrt.library import Library, TensorInfo, dtype_name, make_log


class OpenEngine:
    """An engine that was deserialised, and the context that it runs in.

    Its intermediate values are in memory of ``device``, which is allocated here.

    Raises:
        BackendError: if the library refuses the engine, or there is no memory for it.
    """

    def __init__(self, library: Library, device: Device, engine: Engine) -> None:
        self.title, self.weights = library.title, engine.header.key.weights
        self.parameters = engine.header.parameters
        self._library, self._device, self._trt = library, device, library.module
        self._scratch = 0
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._kernels: Any = None  # TensorRT-RTX's cache of them
        self._kernels_path = cache.kernels_path(library, device.info, engine.plan)
        self._log = make_log(self._trt)
        self.tensors, self.scratch_bytes = engine.header.tensors, 0
        try:
            self._open(engine.plan)
        except BaseException:
            self.close()
            raise

    @property
    def scratch(self) -> Span:
        """Where its intermediate values are."""
        return self._scratch, max(self.scratch_bytes, 1)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Let it read and write its tensors there from now on."""
        with self._device.entered():
            for tensor in self.tensors:
                if not self._context.set_tensor_address(tensor.name, addresses[tensor.name]):
                    raise self._failed(f"does not take an address for {tensor.name!r}")

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream."""
        if not self._context.execute_async_v3(stream):
            raise self._failed("does not run the engine")

    def can_be_recorded(self) -> bool:
        """Whether a run may be part of a CUDA graph; it ran before."""
        if self.weights == "refit":  # whether a graph sees exchanged weights is not documented
            return False
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is None:
            return True
        with self._device.entered() as stream:
            return bool(ask(stream))

    def refitter(self, addresses: Mapping[str, int], counts: Mapping[str, int]) -> Any:
        """What exchanges the weights for those on the device at ``addresses``, each time asked.

        Raises:
            BackendError: if the library wants others, or others too.
        """
        trt = self._trt
        with self._device.entered():
            made = trt.Refitter(self._engine, self._log)
            for name, address in addresses.items():
                weights = trt.Weights(trt.float32, address, counts[name])
                if not made.set_named_weights(name, weights, trt.TensorLocation.DEVICE):
                    raise self._failed(f"does not exchange the weights {name!r}")
            missing = list(made.get_missing_weights())
        if missing:
            raise self._failed(f"wants weights that are no parameters: {missing[0]!r}")
        return made

    def refit(self, made: Any, stream: int) -> None:
        """Put the exchange on the stream."""
        if not made.refit_cuda_engine_async(stream):
            raise self._failed("does not exchange the weights")

    def close(self) -> None:
        """Give back what it holds; nothing of it is running."""
        with suppress(BackendError), self._device.entered():  # it may have failed long before
            if self._kernels is not None and self._scratch:
                cache.keep(self._kernels_path, bytes(memoryview(self._kernels.serialize())))
                self._kernels = None
            self._context = self._engine = self._runtime = None
        if self._scratch:
            self._device.free(self._scratch)
            self._scratch = 0

    def _open(self, plan: bytes) -> None:
        with self._device.entered():
            self._runtime = self._trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise self._failed("does not open the engine")
            self._check_tensors()
            self._context = self._make_context()
            self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = self._device.allocate(max(self.scratch_bytes, 1))
        with self._device.entered():
            self._context.set_device_memory(self._scratch, self.scratch_bytes)

    def _make_context(self) -> Any:
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._trt, "IRuntimeCache"):
            made = self._engine.create_execution_context(managed)
        else:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            kernels = config.create_runtime_cache()
            kept = cache.read_kept(self._kernels_path)
            if not (kept and kernels.deserialize(kept)):
                self._kernels = kernels  # new ones are kept in the end
            config.set_runtime_cache(kernels)
            made = self._engine.create_execution_context(config)
        if made is None:
            raise self._failed("makes no context for the engine")
        return made

    def _check_tensors(self) -> None:
        """What the file says of the tensors is what memory was planned by."""
        engine, found = self._engine, []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            role = "input" if engine.get_tensor_mode(name).name == "INPUT" else "output"
            shape, dtype = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
            found.append(TensorInfo(name, role, shape, dtype_name(dtype)))
        if set(found) != set(self.tensors):
            other = sorted(t.name for t in set(found) ^ set(self.tensors))
            raise BackendError(
                f"{self.title}: the engine does not take or give {other[0]!r} as its file says.",
                "build it again.",
            )

    def _failed(self, what: str) -> BackendError:
        reason = " ".join(self._log.reason().split())[:400]
        return BackendError(
            f"{self.title} {what} ({reason}).", "--backend cuda runs the bundle without it."
        )


@dataclass(frozen=True)
class EngineCall:
    """See `edgeadapt.runtime.cuda.device.LibraryCall`."""

    name: str
    reads: Sequence[Span]
    writes: Sequence[Span]
    enqueue: Any = field(compare=False)


class BoundEngine:
    """An engine with memory for all that it takes and gives.

    ``given`` are addresses of tensors that are elsewhere: image and restoration. What it is given
    and what it allocates stays in place until it is closed.
    """

    def __init__(
        self, device: Device, engine: OpenEngine, bundle: Bundle, given: Mapping[str, int]
    ) -> None:
        self._device, self._engine = device, engine
        self._graph: Graph | None = None
        self._copies: dict[int, Graph] = {}  # by the address of the flat array
        self._holds: tuple[int, int] | None = None  # whose weights, and which version of them
        self._refit: EngineCall | None = None
        self._ran = self._plain = False
        flat = bundle.offsets()
        self._parameters = {name: flat[name] for name in engine.parameters}
        sizes = {t.name: _bytes(t) for t in engine.tensors if t.name not in given}
        sizes |= {name: 4 * (at.stop - at.start) for name, at in self._parameters.items()}
        self._block, self._addresses = 0, dict(given)
        offset = 0
        for name, size in sizes.items():
            self._addresses[name] = offset
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        try:
            self._block = device.allocate(max(offset, 1))
            for name in sizes:
                self._addresses[name] += self._block
            engine.bind({tensor.name: self._addresses[tensor.name] for tensor in engine.tensors})
            self._run = EngineCall(
                f"engine of {engine.title}",
                self._spans("input"),
                [*self._spans("output"), engine.scratch],
                engine.enqueue,
            )
            if engine.weights == "refit":
                self._refit = self._exchange()
        except BaseException:
            self.close()
            raise

    def address(self, name: str) -> int:
        """Where a tensor is."""
        return self._addresses[name]

    def use_weights(self, flat: int, version: int) -> None:
        """Run with the weights of a flat array on the device, whose ``version`` says if it changed.

        Nothing happens where the engine has them, or none of its own but those it was built with.
        """
        if not self._parameters or self._holds == (flat, version):
            return
        if flat not in self._copies:
            self._copies[flat] = self._device.capture(partial(self.copy_weights, flat))
        self._copies[flat].launch()
        if self._refit is not None:
            self._device.call(self._refit)
        self._holds = (flat, version)

    def copy_weights(self, flat: int) -> None:
        """Ask for the copies alone, as part of what is recorded."""
        for name, at in self._parameters.items():
            size = 4 * (at.stop - at.start)
            self._device.copy(self._addresses[name], flat + 4 * at.start, size)

    def run(self) -> None:
        """Put one run on the device's stream: from the second on, as a recorded graph."""
        if self._graph is not None:
            self._graph.launch()
            return
        if self._ran and not self._plain:
            self._record()
            self.run()
            return
        self.call()

    def call(self) -> None:
        """Ask for one run alone, as part of what is recorded. It has to have run before."""
        self._device.call(self._run)
        self._ran = True

    def close(self) -> None:
        """Give back what it holds, the engine too; nothing of it is running."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        while self._copies:
            self._copies.popitem()[1].close()
        self._refit = None
        self._engine.close()
        if self._block:
            self._device.free(self._block)
            self._block = 0

    def _record(self) -> None:
        """The library may load and compile in its first run, which no graph can record."""
        self._plain = True
        if self._engine.can_be_recorded():
            with suppress(BackendError):  # it goes without
                self._graph = self._device.capture(lambda: self._device.call(self._run))

    def _exchange(self) -> EngineCall:
        addresses = {name: self._addresses[name] for name in self._parameters}
        counts = {name: at.stop - at.start for name, at in self._parameters.items()}
        made = self._engine.refitter(addresses, counts)
        spans = [(addresses[name], 4 * count) for name, count in counts.items()]
        enqueue = partial(self._engine.refit, made)
        return EngineCall("exchange of an engine's weights", spans, [], enqueue)

    def _spans(self, role: str) -> list[Span]:
        return [
            (self._addresses[tensor.name], _bytes(tensor))
            for tensor in self._engine.tensors
            if tensor.role == role
        ]


def _bytes(tensor: TensorInfo) -> int:
    return prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
