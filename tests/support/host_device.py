"""A CUDA device on this machine: kernels run through the host shim, and what is asked is checked.

It stands for `edgeadapt.runtime.cuda.device.Device`. Every address that a launch, a copy or a
library's call is told must lie in live memory, all that it reaches included; memory starts as NaN.
A lazy device runs nothing before it is synchronized, and until then what is to be downloaded is
NaN, so that a missing synchronisation shows. What breaks the protocol raises `MisuseError`; what a
device may refuse, and what `Faults` asks for, is a `BackendError`.
"""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda.device import (
    Array,
    DeviceInfo,
    Event,
    HostBuffer,
    LibraryCall,
    Span,
    byte_count,
    contiguous_bytes,
    device_lost,
    out_of_memory,
)
from support.cuda_host import HostError, library_of, run_on_host
from support.host_memory import PATTERN, Memory, MisuseError, Use, uses_of

ORIN = DeviceInfo("host", (8, 7), 8 << 30, 16, unified=False, driver=(13, 0))


@dataclass
class Faults:
    """What goes wrong, and when; counted from 1."""

    full_at: int | None = None  # allocation
    lost_at: int | None = None  # launch of a kernel, those of graphs included
    unsupported: bool = False  # there are no kernels for this architecture


@dataclass(frozen=True, eq=False)
class Operation:
    """One thing that was put on the stream."""

    kind: str  # "launch", "call", "upload", "download", "copy", "fill", "mark", "graph"
    name: str  # of the kernel or of the library's call
    run: Callable[[], object]
    uses: tuple[Use, ...] = ()
    launch: Launch | None = None
    host: Span | None = None  # the array that is copied from or to
    keeps: Array | None = None  # the same, unless a graph copies it: that keeps nothing alive
    unset: Callable[[], object] | None = None  # makes it NaN until the copy has run


class HostDevice:
    """See the module. ``asked`` counts calls by kind, ``ran`` what they did, graphs included.

    ``kernels`` counts launches that ran by kernel. ``backward`` runs blocks and threads in the
    other order, which is not to matter.
    """

    def __init__(
        self,
        *,
        lazy: bool = True,
        unified: bool = False,
        backward: bool = False,
        memory_bytes: int = ORIN.memory_bytes,
        faults: Faults | None = None,
        info: DeviceInfo = ORIN,
    ) -> None:
        self.info = replace(info, unified=unified, memory_bytes=memory_bytes)
        self.memory = Memory()
        self.faults = faults or Faults()
        self.asked: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.lost = ""
        self._lazy, self._backward = lazy, backward
        self._queue: list[Operation] = []
        self._recorded: list[Operation] | None = None
        self._pinned: dict[int, int] = {}
        self._frozen = False
        self._open = True
        self._busy = threading.RLock()

    def free_bytes(self) -> int:
        with self._asked("free_bytes"):
            return self.info.memory_bytes - self.memory.used_bytes

    def allocate(self, nbytes: int) -> int:
        with self._asked("allocate", records=False):
            if self._frozen:
                raise MisuseError(f"{nbytes} bytes are allocated where nothing may be")
            free = self.info.memory_bytes - self.memory.used_bytes
            if nbytes > free or self.asked["allocate"] == self.faults.full_at:
                raise out_of_memory(nbytes, free)
            return self.memory.allocate(nbytes)

    def free(self, address: int) -> None:
        if not self._open or self.lost:
            return
        with self._asked("free", records=False):
            if self._queue:
                raise MisuseError(f"free: {len(self._queue)} operations have not run yet")
            self.memory.free(address)

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostBuffer:
        with self._asked("pinned", records=False):
            if self._frozen:
                raise MisuseError("memory is pinned where nothing may be allocated")
            nbytes = byte_count(shape, dtype)
            block = (ctypes.c_uint8 * max(nbytes, 1))()
            start = ctypes.addressof(block)
            ctypes.memset(block, PATTERN, len(block))
            self._pinned[start] = len(block)
            if self.info.unified:
                self.memory.mapped[start] = len(block)
            weakref.finalize(block, _unpin, start, self._pinned, self.memory.mapped)
            array = np.frombuffer(block, np.uint8)[:nbytes].view(dtype).reshape(shape)
            return HostBuffer(array, start if self.info.unified else None)

    def upload(self, address: int, array: Array) -> None:
        nbytes = contiguous_bytes("upload", array)
        with self._asked("upload"):
            uses, host = (Use("to", (address, nbytes)),), int(array.ctypes.data)
            run = partial(ctypes.memmove, address, host, nbytes)
            keeps = None if self._recorded is not None else array
            self._put(Operation("upload", "upload", run, uses, host=(host, nbytes), keeps=keeps))

    def download(self, array: Array, address: int) -> None:
        nbytes = contiguous_bytes("download", array)
        with self._asked("download"):
            if not array.flags.writeable:
                raise MisuseError("download: the array cannot be written")
            uses, host = (Use("from", (address, nbytes)),), int(array.ctypes.data)
            run = partial(ctypes.memmove, host, address, nbytes)
            unset = partial(ctypes.memset, host, PATTERN, nbytes)
            keeps = None if self._recorded is not None else array
            self._put(
                Operation("download", "download", run, uses, None, (host, nbytes), keeps, unset)
            )

    def copy(self, to: int, source: int, nbytes: int) -> None:
        with self._asked("copy"):
            if abs(to - source) < nbytes:
                raise MisuseError(f"copy: {nbytes} bytes at {source:#x} and {to:#x} overlap")
            uses = (Use("to", (to, nbytes)), Use("source", (source, nbytes)))
            self._put(Operation("copy", "copy", partial(ctypes.memmove, to, source, nbytes), uses))

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        with self._asked("fill"):
            if not 0 <= byte <= 255:
                raise MisuseError(f"fill: {byte} is no byte")
            run = partial(ctypes.memset, address, byte, nbytes)
            self._put(Operation("fill", "fill", run, (Use("address", (address, nbytes)),)))

    def prepare(self, kernels: Iterable[str]) -> None:
        with self._asked("prepare"):
            for kernel in kernels:
                self._check_kernel(kernel)

    def launch(self, launch: Launch) -> None:
        with self._asked("launch"):
            self._check_kernel(launch.kernel)
            # As on a GPU, the arguments are those of now.
            arguments = type(launch.arguments).from_buffer_copy(launch.arguments)
            launch = replace(launch, arguments=arguments)
            run = partial(run_on_host, launch, self._backward)
            uses = tuple(uses_of(arguments))
            self._put(Operation("launch", launch.kernel, run, uses, launch))

    def call(self, call: LibraryCall) -> None:
        with self._asked("call"):
            uses = [Use(f"reads[{i}]", span) for i, span in enumerate(call.reads)]
            uses += [Use(f"writes[{i}]", span) for i, span in enumerate(call.writes)]
            self._put(Operation("call", call.name, partial(call.enqueue, 0), tuple(uses)))

    @contextmanager
    def entered(self) -> Iterator[int]:
        with self._asked("entered", records=False):
            yield 0

    def capture(self, work: Callable[[], None]) -> HostGraph:
        with self._asked("capture", records=False):
            self._recorded = recorded = []
            try:
                work()
            finally:
                self._recorded = None
            return HostGraph(self, tuple(recorded))

    def mark(self) -> HostEvent:
        with self._asked("mark", records=False):
            event = HostEvent(self)
            self._put(Operation("mark", "mark", event.pass_by))
            return event

    def synchronize(self) -> None:
        with self._asked("synchronize", records=False):
            self.run_all()

    def close(self) -> None:
        if not self._open:
            return
        if self._recorded is not None:
            raise MisuseError("close: while a graph is recorded")
        try:
            if not self.lost:
                self.run_all()
                self.memory.check_guards("close")
        finally:
            self._open = False
            self.memory.live.clear()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Whatever is allocated meanwhile is a `MisuseError`."""
        self._frozen = True
        try:
            yield
        finally:
            self._frozen = False

    def array(self, address: int, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Device memory as an array, to look at or to fill; what is pending has not run."""
        nbytes = byte_count(shape, dtype)
        self.memory.check("array", [Use("address", (address, nbytes))])
        block = (ctypes.c_uint8 * nbytes).from_address(address)
        return np.frombuffer(block, np.uint8).view(dtype).reshape(shape)

    def run_all(self) -> None:
        """Run what is on the stream."""
        queue, self._queue = self._queue, []
        for operation in queue:
            self._run(operation)
        self._check_lost()

    def put_graph(self, operations: tuple[Operation, ...]) -> None:
        """Put recorded operations on the stream again."""
        with self._asked("graph", records=False):
            for operation in operations:
                self._check(operation)
            self._put(Operation("graph", "graph", partial(self._replay, operations)))
            for operation in operations:
                if self._lazy and operation.unset is not None:
                    operation.unset()

    def _replay(self, operations: tuple[Operation, ...]) -> None:
        with self.frozen():
            for operation in operations:
                self._run(operation)

    def _put(self, operation: Operation) -> None:
        self._check(operation)
        if self._recorded is not None:
            self._recorded.append(operation)
            return
        self._queue.append(operation)
        if self._lazy and operation.unset is not None:
            operation.unset()
        if not self._lazy:
            queue, self._queue = self._queue, []
            for each in queue:
                self._run(each)

    def _run(self, operation: Operation) -> None:
        if self.lost:
            return
        if operation.kind == "launch":
            self.kernels[operation.name] += 1
            if self.kernels.total() == self.faults.lost_at:
                self.lost = f"noticed after {operation.name}"
                return
        self._check(operation)
        operation.run()
        self.ran[operation.kind] += 1
        self.memory.check_guards(operation.name)

    def _check(self, operation: Operation) -> None:
        self.memory.check(operation.name, operation.uses)
        if operation.host is None or operation.keeps is not None:
            return
        start, nbytes = operation.host
        if not any(a <= start and start + nbytes <= a + n for a, n in self._pinned.items()):
            raise MisuseError(
                f"{operation.kind}: what a graph copies must be pinned memory that lives"
            )

    def _check_kernel(self, kernel: str) -> None:
        if self.faults.unsupported:
            raise BackendError(f"there is no CUDA kernel {kernel!r} for {self.info.architecture}.")
        try:
            library_of(kernel)
        except HostError as error:
            raise BackendError(str(error)) from error

    @contextmanager
    def _asked(self, what: str, records: bool = True) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise MisuseError(f"{what}: another thread is using this device")
        try:
            if not self._open:
                raise BackendError(f"CUDA: cannot {what}, the device was closed.")
            if self._recorded is not None and not records:
                raise MisuseError(f"{what}: while a graph is recorded")
            self._check_lost()
            self.asked[what] += 1
            yield
        finally:
            self._busy.release()

    def _check_lost(self) -> None:
        if self.lost:
            raise device_lost(self.info, self.lost)


class HostGraph:
    """See `Graph`; ``operations`` are what was recorded."""

    def __init__(self, device: HostDevice, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self._device: HostDevice | None = device

    def launch(self) -> None:
        if self._device is None:
            raise MisuseError("launch: the graph is closed")
        self._device.put_graph(self.operations)

    def close(self) -> None:
        self._device = None


class HostEvent:
    """See `Event`."""

    def __init__(self, device: HostDevice) -> None:
        self.device = device
        self.passed: float | None = None

    def pass_by(self) -> None:
        self.passed = time.perf_counter()

    def seconds_since(self, earlier: Event) -> float:
        if not isinstance(earlier, HostEvent) or earlier.device is not self.device:
            raise MisuseError("seconds_since: the other moment is of another device")
        self.device.synchronize()
        if earlier.passed is None or self.passed is None:
            raise MisuseError("seconds_since: a moment has not passed")
        return self.passed - earlier.passed


def _unpin(start: int, *spans: dict[int, int]) -> None:
    for each in spans:
        each.pop(start, None)
