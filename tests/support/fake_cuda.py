"""Stands for PyCUDA, cuda-bindings and a driver: knows what they refuse, and what they leak.

As with the real ones (tried with PyCUDA 2026.1 on a driver of the same kind, written in C):
everything needs a current context; objects give back what they hold when they are dropped, which
fails with a line on stderr, here in ``complaints``, where the context is not current or is lost.
Device memory is host memory; what is put on the stream runs at once, or with a graph.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

from edgeadapt.errors import BackendError

SUCCESS = SimpleNamespace(name="CUDA_SUCCESS")
ILLEGAL = "an illegal memory access was encountered"


class FakeKernels:
    """Stands for what was compiled: a module for each first letter, from two places."""

    def images(self, kernel: str, architecture: str) -> Iterator[tuple[str, bytes]]:
        yield kernel[0], b"fatbin"
        yield kernel[0], f"{architecture}.cubin".encode()
        raise BackendError(f"there is no CUDA kernel {kernel!r} for {architecture}", "build it.")


class Thing:
    """An object of PyCUDA, which ends with its last reference."""

    fake: FakeCuda

    def begin(self, kind: str) -> None:
        """It is there."""
        self.kind = kind
        self.fake.live[kind] += 1

    def __del__(self) -> None:
        if not hasattr(self, "kind"):
            return
        if self.fake.broken or not self.fake.depth:
            self.fake.complaints.append(f"{self.kind} could not be cleaned up")
            return
        self.fake.unsafe(f"drop {self.kind}")
        self.fake.live[self.kind] -= 1


class Module(Thing):
    def __init__(self, fake: FakeCuda) -> None:
        self.fake = fake
        self.begin("module")

    def get_function(self, name: str) -> Function:
        self.fake.enter("cuModuleGetFunction", name)
        if name == "nothing":
            raise self.fake.driver.LogicError("cuModuleGetFunction failed: named symbol not found")
        return Function(self.fake, name)


class Function:
    """A kernel: copies its arguments to the address that they begin with."""

    def __init__(self, fake: FakeCuda, name: str) -> None:
        self.fake, self.name, self.format = fake, name, ""

    def prepare(self, formats: tuple[str, ...]) -> Function:
        self.format = "".join(formats)
        return self

    def prepared_async_call(self, grid: Any, block: Any, stream: Any, packed: bytes) -> None:
        assert self.format == f"{len(packed)}s", "PyCUDA would cut them off or fill them up"
        assert type(grid) is type(block) is tuple
        self.fake.enter("cuLaunchKernel", self.name, grid, block, packed)

        def work() -> None:
            if self.name in self.fake.crashes:
                self.fake.broken = ILLEGAL
            else:
                ctypes.memmove(int.from_bytes(packed[:8], "little"), packed, len(packed))

        self.fake.put(stream, work)


class Allocation(Thing):
    def __init__(self, fake: FakeCuda, nbytes: int) -> None:
        self.fake, self.memory = fake, (ctypes.c_uint8 * nbytes)()
        self.begin("memory")

    def __int__(self) -> int:
        return ctypes.addressof(self.memory)


class Pinned(Allocation):
    def __init__(self, fake: FakeCuda, nbytes: int) -> None:
        self.fake, self.memory = fake, (ctypes.c_uint8 * nbytes)()
        self.begin("pinned")

    def get_device_pointer(self) -> int:
        self.fake.enter("cuMemHostGetDevicePointer")
        return int(self)


class PinnedArray:
    """What is asked of PyCUDA's array in page-locked memory."""

    def __init__(self, base: Pinned) -> None:
        self.base, self.nbytes = base, len(base.memory)
        self.ctypes = SimpleNamespace(data=int(base))


class Stream(Thing):
    def __init__(self, flags: int) -> None:
        self.fake.enter("cuStreamCreate", flags)
        self.handle = id(self)
        self.begin("stream")

    def synchronize(self) -> None:
        self.fake.enter("cuStreamSynchronize")
        assert self.fake.recording is None


class Event(Thing):
    def __init__(self) -> None:
        self.fake.enter("cuEventCreate")
        self.begin("event")

    def record(self, stream: Stream) -> None:
        self.fake.enter("cuEventRecord")
        assert isinstance(stream, Stream)

    def synchronize(self) -> None:
        self.fake.enter("cuEventSynchronize")

    def time_since(self, earlier: Event) -> float:
        self.fake.enter("cuEventElapsedTime")
        return 1.5  # milliseconds


class Context(Thing):
    def __init__(self) -> None:
        self.begin("context")

    def push(self) -> None:
        self.fake.enter("cuCtxPushCurrent", current=False)
        self.fake.stack.depth = self.fake.depth + 1

    @classmethod
    def pop(cls) -> None:
        cls.fake.enter("cuCtxPopCurrent")
        cls.fake.stack.depth -= 1

    def detach(self) -> None:
        self.fake.log.append(("detach",))
        self.fake.stack.depth = 0


class Device:
    fake: FakeCuda

    def __init__(self, ordinal: int) -> None:
        self.fake.enter("cuDeviceGet", ordinal, current=False)
        if ordinal >= self.fake.devices:
            raise self.fake.driver.LogicError("cuDeviceGet failed: invalid device ordinal")

    def name(self) -> str:
        return "Fake"

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def total_memory(self) -> int:
        return self.fake.total

    def get_attribute(self, number: int) -> int:
        return {16: 8, 18: int(self.fake.unified)}[number]

    def retain_primary_context(self) -> Context:
        self.fake.enter("cuDevicePrimaryCtxRetain", current=False)
        return self.fake.driver.Context()


def _move(to: int, source: int, nbytes: int) -> None:
    ctypes.memmove(to, source, nbytes)


class FakeCuda:
    """One driver with one GPU, and the modules that are imported to reach it."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []  # calls with their arguments
        self.live: Counter[str] = Counter()  # objects by kind
        self.complaints: list[str] = []
        self.broken = ""  # the error that everything returns from now on
        self.fails: dict[str, str] = {}  # call -> the error that it returns, once
        self.free, self.total = 1 << 20, 1 << 21
        self.unified = False
        self.version, self.built = 13000, (13, 0, 0)
        self.devices = 1
        self.images: set[bytes] = {b"fatbin"}  # what the GPU takes as a module
        self.crashes: set[str] = set()  # kernels
        self.stack = threading.local()
        self.recording: list[Callable[[], None]] | None = None
        self.driver = self._driver()
        self.bindings = self._bindings()

    def install(self, monkeypatch: Any) -> None:
        """Let `import pycuda.driver` and `import cuda.bindings.driver` find these."""
        for name in [n for n in sys.modules if n.split(".")[0] in ("pycuda", "cuda")]:
            monkeypatch.delitem(sys.modules, name)
        pycuda, bindings = ModuleType("pycuda"), ModuleType("cuda.bindings")
        pycuda.VERSION_TEXT, bindings.__version__ = "2026.1", "13.5.0"  # type: ignore[attr-defined]
        pycuda.driver, bindings.driver = self.driver, self.bindings  # type: ignore[attr-defined]
        found = {"pycuda": pycuda, "pycuda.driver": self.driver, "cuda": ModuleType("cuda")}
        found |= {"cuda.bindings": bindings, "cuda.bindings.driver": self.bindings}
        for name, module in found.items():
            module.__path__ = []  # a package, which imports look for
            monkeypatch.setitem(sys.modules, name, module)

    @property
    def depth(self) -> int:
        """Contexts on this thread's stack."""
        return getattr(self.stack, "depth", 0)

    def called(self, *names: str) -> list[tuple[Any, ...]]:
        """The calls of these names, in order."""
        return [call for call in self.log if call[0] in names]

    def enter(self, name: str, *arguments: Any, current: bool = True) -> None:
        """What every call of PyCUDA does first."""
        self.log.append((name, *arguments))
        said = self.fails.pop(name, "") or self.broken
        if said == ILLEGAL and name.startswith("cuCtxP"):
            said = ""  # a stack of contexts needs no device
        if said:
            kinds = {"out of memory": self.driver.MemoryError}
            raise kinds.get(said, self.driver.LogicError)(f"{name} failed: {said}")
        if current and not self.depth:
            raise self.driver.LogicError(f"{name} failed: invalid device context")

    def put(self, stream: Any, work: Callable[[], None]) -> None:
        """Run at once, or record."""
        assert isinstance(stream, Stream), "not on the default stream"
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def unsafe(self, name: str) -> None:
        """What must not happen while this thread records."""
        if self.recording is not None:
            self.complaints.append(f"{name} while recording")

    def _driver(self) -> Any:
        class Error(Exception):
            pass

        kinds = {name: type(name, (Error,), {}) for name in ("LogicError", "MemoryError")}
        driver: Any = ModuleType("pycuda.driver")
        bound = {
            kind.__name__: type(kind.__name__, (kind,), {"fake": self})
            for kind in (Stream, Event, Context, Device)
        }
        constants = {
            "host_alloc_flags": SimpleNamespace(PORTABLE=1, DEVICEMAP=2),
            "device_attribute": SimpleNamespace(MULTIPROCESSOR_COUNT=16, INTEGRATED=18),
        }
        functions = {
            name: getattr(self, name)
            for name in ("mem_alloc", "mem_get_info", "pagelocked_empty", "module_from_buffer")
        }
        functions |= {
            name: getattr(self, name)
            for name in ("memcpy_htod_async", "memcpy_dtoh_async", "memcpy_dtod_async")
        }
        driver.__dict__.update(kinds, Error=Error, **bound, **constants, **functions)
        driver.memset_d8_async = self.memset_d8_async
        driver.init = lambda: self.enter("cuInit", current=False)
        driver.get_driver_version = lambda: self.version
        driver.get_version = lambda: self.built
        return driver

    def mem_alloc(self, nbytes: int) -> Allocation:
        self.enter("cuMemAlloc", nbytes)
        self.unsafe("cuMemAlloc")
        return Allocation(self, nbytes)

    def mem_get_info(self) -> tuple[int, int]:
        self.enter("cuMemGetInfo")
        return self.free, self.total

    def pagelocked_empty(self, shape: tuple[int], dtype: Any, mem_flags: int = 0) -> Any:
        self.enter("cuMemHostAlloc", shape, mem_flags)
        self.unsafe("cuMemHostAlloc")
        assert len(shape) == 1
        assert shape[0] > 0
        return PinnedArray(Pinned(self, shape[0]))

    def module_from_buffer(self, image: bytes) -> Module:
        self.enter("cuModuleLoadDataEx")
        if bytes(image) not in self.images:
            raise self.driver.LogicError("cuModuleLoadDataEx failed: no kernel image is available")
        return Module(self)

    def memcpy_htod_async(self, to: int, array: Any, stream: Any) -> None:
        self.enter("cuMemcpyHtoDAsync", to, array.nbytes)
        source, nbytes = array.ctypes.data, array.nbytes
        self.put(stream, lambda: _move(to, source, nbytes))

    def memcpy_dtoh_async(self, array: Any, source: int, stream: Any) -> None:
        self.enter("cuMemcpyDtoHAsync", source, array.nbytes)
        to, nbytes = array.ctypes.data, array.nbytes
        self.put(stream, lambda: _move(to, source, nbytes))

    def memcpy_dtod_async(self, to: int, source: int, nbytes: int, stream: Any) -> None:
        self.enter("cuMemcpyDtoDAsync", to, source, nbytes)
        self.put(stream, lambda: _move(to, source, nbytes))

    def memset_d8_async(self, to: int, byte: int, nbytes: int, stream: Any) -> None:
        self.enter("cuMemsetD8Async", to, byte, nbytes)
        self.put(stream, lambda: ctypes.memset(to, byte, nbytes) and None)

    def _bindings(self) -> Any:
        bindings: Any = ModuleType("cuda.bindings.driver")
        bindings.CUresult = SimpleNamespace(CUDA_SUCCESS=SUCCESS)
        bindings.CUstream = int
        bindings.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="local")
        for name, work in {
            "cuDriverGetVersion": lambda: self.version,
            "cuStreamBeginCapture": self._begin,
            "cuStreamEndCapture": self._end,
            "cuGraphInstantiate": self._instantiate,
            "cuGraphUpload": lambda executable, stream: None,
            "cuGraphLaunch": lambda executable, stream: [work() for work in executable] and None,
            "cuGraphDestroy": partial(self._destroy, "graph"),
            "cuGraphExecDestroy": partial(self._destroy, "executable"),
        }.items():
            setattr(bindings, name, partial(self._bound, name, work))
        return bindings

    def _bound(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        self.log.append((name, *arguments))
        said = self.fails.pop(name, "") or self.broken
        if said:
            if name == "cuStreamEndCapture":
                self.recording = None  # ends it all the same
            return SimpleNamespace(name=said), None
        assert self.depth or name == "cuDriverGetVersion"
        result = work(*arguments)
        return (SUCCESS,) if result is None else (SUCCESS, result)

    def _begin(self, stream: int, mode: str) -> None:
        assert mode == "local", "others could not allocate meanwhile"
        self.recording = []

    def _end(self, stream: int) -> list[Callable[[], None]]:
        recorded, self.recording = self.recording, None
        assert recorded is not None
        self.live["graph"] += 1
        return recorded

    def _instantiate(self, graph: list[Callable[[], None]], flags: int) -> Any:
        self.live["executable"] += 1
        return list(graph)

    def _destroy(self, kind: str, handle: Any) -> None:
        self.unsafe(f"destroy {kind}")
        self.live[kind] -= 1
