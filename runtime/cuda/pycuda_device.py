"""A GPU through PyCUDA, and through cuda-bindings where PyCUDA has nothing: recording graphs."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import BackendError, one_line
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda.device import (
    Array,
    Event,
    HostBuffer,
    LibraryCall,
    argument_bytes,
    byte_count,
    contiguous_bytes,
    device_lost,
    holds,
    out_of_memory,
)
from edgeadapt.runtime.cuda.pycuda_context import ALL, Context, contexts
from edgeadapt.runtime.cuda.pycuda_import import CallError, Libraries

# Other libraries' work on the default stream neither waits for ours nor spoils what is recorded.
NON_BLOCKING = 1
MEMORY = Path("/proc/meminfo")


def open_device(ordinal: int = 0) -> PycudaDevice:
    """Open a GPU, with a stream of its own.

    Raises:
        BackendError: if there is none, or PyCUDA, cuda-bindings or the driver is missing or too
            old; says which, and how to come by it.
    """
    return PycudaDevice(contexts.get(ordinal))


class PycudaDevice:
    """See `edgeadapt.runtime.cuda.device.Device`."""

    def __init__(self, context: Context) -> None:
        self.info = context.info
        self._context = context
        self._libraries = context.libraries
        self._driver = context.libraries.driver
        self._things = context.new_things()
        self._close = weakref.finalize(self, context.drop, self._things, ALL)
        self._close.atexit = False  # `Context` sees to it
        self._memory: dict[int, int] = {}  # address -> what `Context.keep` returned
        self._pinned: dict[int, int] = {}  # address -> bytes
        self._recording = False
        self._stream_key = -1  # not yet
        with self._asking("make a stream"):
            # What is in `_things` is held there only: where it is dropped, it has to end.
            self._stream_key = context.keep(self._things, self._driver.Stream(NON_BLOCKING))
        self._check_recording()

    def free_bytes(self) -> int:
        """See `Device`."""
        with self._asking("ask for free memory"):
            return self._free_bytes()

    def allocate(self, nbytes: int) -> int:
        """See `Device`."""
        self._refuse_while_recording("allocate")
        with self._asking(f"allocate {nbytes:,} bytes"):
            self._context.sweep()
            free = self._free_bytes()
            if nbytes > free:
                raise out_of_memory(nbytes, free)
            try:
                allocation = self._driver.mem_alloc(max(nbytes, 1))
            except self._driver.MemoryError as error:
                raise out_of_memory(nbytes, free) from error
            address = int(allocation)
            self._memory[address] = self._context.keep(self._things, allocation)
            return address

    def free(self, address: int) -> None:
        """See `Device`."""
        self._refuse_while_recording("free")
        if self._close.alive:
            self._context.drop(self._things, self._memory.pop(address))

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostBuffer:
        """See `Device`."""
        self._refuse_while_recording("pin memory")
        nbytes, mapped = byte_count(shape, dtype), self.info.unified
        flags = self._driver.host_alloc_flags
        with self._asking(f"pin {nbytes:,} bytes"):
            self._context.sweep()
            # PyCUDA cannot make arrays without axes, nor CUDA any without bytes.
            raw = self._driver.pagelocked_empty(
                (max(nbytes, 1),),
                np.uint8,
                mem_flags=flags.PORTABLE | (flags.DEVICEMAP if mapped else 0),
            )
            address = int(raw.base.get_device_pointer()) if mapped else None
            key = self._context.keep(self._context.own, raw)
        # The array may outlive the device; its own end gives the memory back.
        start = int(raw.ctypes.data)
        block = (ctypes.c_uint8 * raw.nbytes).from_address(start)
        self._pinned[start] = raw.nbytes
        end = weakref.finalize(block, _unpin, self._context, key, self._pinned, start)
        end.atexit = False
        array = np.frombuffer(block, np.uint8)[:nbytes].view(dtype).reshape(shape)
        return HostBuffer(array, address)

    def upload(self, address: int, array: Array) -> None:
        """See `Device`."""
        nbytes = contiguous_bytes("upload", array)
        self._check_copied(array)
        with self._asking(f"upload {nbytes:,} bytes"):
            self._driver.memcpy_htod_async(address, array, self._stream)

    def download(self, array: Array, address: int) -> None:
        """See `Device`."""
        nbytes = contiguous_bytes("download", array)
        self._check_copied(array)
        with self._asking(f"download {nbytes:,} bytes"):
            self._driver.memcpy_dtoh_async(array, address, self._stream)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """See `Device`."""
        with self._asking(f"copy {nbytes:,} bytes"):
            self._driver.memcpy_dtod_async(to, source, nbytes, self._stream)

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """See `Device`."""
        with self._asking(f"fill {nbytes:,} bytes"):
            self._driver.memset_d8_async(address, byte, nbytes, self._stream)

    def prepare(self, kernels: Iterable[str]) -> None:
        """See `Device`."""
        with self._asking("load kernels"):
            for kernel in kernels:
                self._context.function(kernel)

    def launch(self, launch: Launch) -> None:
        """See `Device`."""
        packed = argument_bytes(launch.arguments)
        with self._asking(f"launch {launch.kernel}"):
            function = self._context.function(launch.kernel, len(packed))
            function.prepared_async_call(launch.grid, launch.block, self._stream, packed)

    def call(self, call: LibraryCall) -> None:
        """See `Device`."""
        with self._asking(f"run {call.name}"):
            try:
                call.enqueue(int(self._stream.handle))
            except Exception as error:  # of the library's own kinds
                lost = None if self._recording else self._lost_at(f"run {call.name}")
                if lost is not None:
                    raise lost from error
                raise

    @contextmanager
    def entered(self) -> Iterator[int]:
        """See `Device`."""
        self._refuse_while_recording("let a library prepare")
        with self._asking("let a library prepare"):
            yield int(self._stream.handle)

    def capture(self, work: Callable[[], None]) -> PycudaGraph:
        """See `Device`."""
        self._refuse_while_recording("record")
        bound = self._libraries.bound
        stream, mode = self._for_bindings()
        with self._asking("record a graph"), self._context.recording():
            bound("cuStreamBeginCapture", stream, mode)
            self._recording = True
            try:
                work()
            except BaseException:
                with suppress(CallError):
                    bound("cuGraphDestroy", bound("cuStreamEndCapture", stream))
                raise
            finally:
                self._recording = False
            graph = bound("cuStreamEndCapture", stream)
            try:
                executable = Executable(self._libraries, bound("cuGraphInstantiate", graph, 0))
            finally:
                bound("cuGraphDestroy", graph)
            key = self._context.keep(self._things, executable)
            bound("cuGraphUpload", executable.handle, stream)
        self._context.sweep()
        close = partial(self._context.drop, self._things, key)
        return PycudaGraph(partial(self._launch_graph, executable.handle, stream), close)

    def mark(self) -> PycudaEvent:
        """See `Device`."""
        self._refuse_while_recording("mark")
        with self._asking("mark a moment"):
            self._context.sweep()
            key = self._context.keep(self._things, self._driver.Event())
            self._things[key].record(self._stream)
        return PycudaEvent(self, key, partial(self._context.drop, self._things, key))

    def seconds_between(self, earlier: int, later: int) -> float:
        """Time between the events of two keys; waits for the later one."""
        self._refuse_while_recording("take a time")
        with self._asking("take a time"):
            self._things[later].synchronize()
            return float(self._things[later].time_since(self._things[earlier])) / 1e3

    def synchronize(self) -> None:
        """See `Device`."""
        self._refuse_while_recording("synchronize")
        with self._asking("finish its work"):
            self._stream.synchronize()
            self._context.sweep()

    def close(self) -> None:
        """See `Device`."""
        self._refuse_while_recording("close")
        if self._close.alive:
            with suppress(BackendError):  # what failed is of no interest any more
                self.synchronize()
            self._memory.clear()
            self._close()

    @property
    def _stream(self) -> Any:
        return self._things[self._stream_key]

    def _check_recording(self) -> None:
        """Say now, not in the middle of an adaptation, if cuda-bindings and the driver disagree."""
        stream, mode = self._for_bindings()
        try:
            with self._asking("record a graph"):
                self._libraries.bound("cuStreamBeginCapture", stream, mode)
                graph = self._libraries.bound("cuStreamEndCapture", stream)
                self._libraries.bound("cuGraphDestroy", graph)
        except BackendError:
            self._close()
            raise

    def _for_bindings(self) -> tuple[Any, Any]:
        bindings = self._libraries.bindings
        # Other threads may allocate while this one records.
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        return bindings.CUstream(int(self._stream.handle)), mode

    def _launch_graph(self, executable: Any, stream: Any) -> None:
        self._refuse_while_recording("launch a graph")
        with self._asking("launch a graph"):
            self._libraries.bound("cuGraphLaunch", executable, stream)

    def _free_bytes(self) -> int:
        free = int(self._driver.mem_get_info()[0])
        if not self.info.unified:
            return free
        # CUDA does not count what the system would give up for it: its caches of files.
        return max(free, min(available_bytes(), self.info.memory_bytes))

    def _check_copied(self, array: Array) -> None:
        if self._recording and not holds(list(self._pinned.items()), array):
            raise ValueError("what a graph copies must be pinned memory of this device")

    def _refuse_while_recording(self, what: str) -> None:
        if self._recording:
            raise ValueError(f"cannot {what} while a graph is recorded")

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Calls of the libraries, whose errors become ours."""
        if not self._close.alive:
            raise BackendError(f"CUDA: cannot {what}, the device was closed.")
        try:
            with self._context.current():
                yield
        except self._libraries.errors as error:
            lost = None if self._recording else self._lost_at(what)
            raise lost or BackendError(f"CUDA: cannot {what} ({one_line(error)}).") from error

    def _lost_at(self, what: str) -> BackendError | None:
        """The error that all later calls raise, if the device does not work any more.

        What went wrong before is noticed by whatever asks next, and by everything after that.
        """
        try:
            with self._context.current():
                if self._stream_key in self._things:
                    self._stream.synchronize()
        except self._libraries.errors as error:
            lost = device_lost(self.info, f"noticed when it was to {what}: {one_line(error)}")
            self._context.lose(lost)
            return lost
        return None


class PycudaGraph:
    """See `edgeadapt.runtime.cuda.device.Graph`."""

    def __init__(self, launch: Callable[[], None], close: Callable[[], None]) -> None:
        self._launch = launch
        self._close = weakref.finalize(self, close)
        self._close.atexit = False

    def launch(self) -> None:
        """See `Graph`."""
        if not self._close.alive:
            raise ValueError("a graph that was closed cannot be launched")
        self._launch()

    def close(self) -> None:
        """See `Graph`."""
        self._close()


class PycudaEvent:
    """See `edgeadapt.runtime.cuda.device.Event`."""

    def __init__(self, device: PycudaDevice, key: int, close: Callable[[], None]) -> None:
        self.device = device
        self.key = key
        weakref.finalize(self, close).atexit = False

    def seconds_since(self, earlier: Event) -> float:
        """See `Event`."""
        if not isinstance(earlier, PycudaEvent) or earlier.device is not self.device:
            raise ValueError("seconds_since: the other moment is of another device")
        return self.device.seconds_between(earlier.key, self.key)


class Executable:
    """A graph's executable form, which ends with this object, as things of PyCUDA do."""

    def __init__(self, libraries: Libraries, handle: Any) -> None:
        self.handle = handle
        self._libraries = libraries

    def __del__(self) -> None:
        with suppress(CallError):
            self._libraries.bound("cuGraphExecDestroy", self.handle)


def _unpin(context: Context, key: int, pinned: dict[int, int], start: int) -> None:
    pinned.pop(start, None)
    context.drop(context.own, key)


def available_bytes() -> int:
    """Memory that the system could give to a program, or 0 where it does not say."""
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 0
