"""What the CUDA engine asks of a device, and what it is told; no library is needed for this.

A device has one stream: what is asked of it with ``upload``, ``download``, ``copy``, ``fill``,
``launch``, ``call``, ``mark`` and a graph's ``launch`` is done in that order, some time later, and
is done for certain when ``synchronize`` returns. Until then host arrays that were named must stay
alive, must not be changed if they are read, and hold nothing yet if they are written.

Addresses are those of device memory. Memory is written by what runs on the stream alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.launch import Launch

Array = npt.NDArray[Any]
Span = tuple[int, int]  # an address and a number of bytes
ALIGNMENT = 256  # of every allocation, in bytes


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is."""

    name: str
    capability: tuple[int, int]  # (8, 7) is sm_87
    memory_bytes: int
    multiprocessors: int
    unified: bool  # device and host share their memory, as on every Jetson
    driver: tuple[int, int]  # the newest CUDA that the driver knows
    libraries: tuple[tuple[str, str], ...] = ()  # (name, version) of what drives it

    @property
    def architecture(self) -> str:
        """As compilers call it: "sm_87"."""
        major, minor = self.capability
        return f"sm_{major}{minor}"


@dataclass(frozen=True, eq=False)
class HostBuffer:
    """Page-locked memory of the host, which a device copies from and to without waiting.

    The memory is that of ``array`` and lives as long as it does. ``address`` is where kernels find
    the same memory if it is mapped, which it is on a device with unified memory; otherwise None.
    """

    array: Array  # contiguous
    address: int | None = None


class LibraryCall(Protocol):
    """Work that another library puts on the stream, cuDNN's for example."""

    @property
    def name(self) -> str:
        """What it is called in messages and in timings."""

    @property
    def reads(self) -> Sequence[Span]:
        """Device memory that it reads."""

    @property
    def writes(self) -> Sequence[Span]:
        """Device memory that it writes, its working memory included."""

    def enqueue(self, stream: int) -> None:
        """Put it on the stream with this handle (``CUstream``); never waits, never allocates."""


class Event(Protocol):
    """A moment on the stream."""

    def seconds_since(self, earlier: Event) -> float:
        """Time between two moments of one device; waits until both have passed."""


class Graph(Protocol):
    """Work that was recorded; belongs to the device that recorded it."""

    def launch(self) -> None:
        """Put all of it on the stream, as one launch."""

    def close(self) -> None:
        """Give back what it holds; the graph cannot be launched afterwards."""


class Device(Protocol):
    """One device, or what stands for one in tests. Used by one thread at a time, by any.

    Every method raises a `BackendError` if the device refuses. If what ran on it failed in a way
    that it does not recover from, the call that notices says so, and all later ones raise at once,
    apart from `free` and `close`, which then do nothing.
    """

    @property
    def info(self) -> DeviceInfo:
        """What it is."""

    def free_bytes(self) -> int:
        """Memory that can still be allocated, other programs' share taken off."""

    def allocate(self, nbytes: int) -> int:
        """Address of new memory, a multiple of `ALIGNMENT`; what it holds is undefined.

        Raises:
            BackendError: if that much is not free; says how much was asked for and how much is.
        """

    def free(self, address: int) -> None:
        """Give back what `allocate` returned, once all work on the stream is done."""

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostBuffer:
        """New page-locked memory, mapped if the device's memory is unified; not initialised."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; inside `capture` it must be a `pinned` one."""

    def download(self, array: Array, address: int) -> None:
        """Copy from the device to a contiguous array; as for `upload`."""

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy within the device; the two do not overlap."""

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """Set every byte to ``byte``, 0 to 255."""

    def prepare(self, kernels: Iterable[str]) -> None:
        """Load kernels, so that their first launch takes no longer than others and can be captured.

        Raises:
            BackendError: if there is none of that name, or none for this device.
        """

    def launch(self, launch: Launch) -> None:
        """Run a kernel; its arguments are copied and may be changed afterwards."""

    def call(self, call: LibraryCall) -> None:
        """Let a library put its work on the stream."""

    def entered(self) -> AbstractContextManager[int]:
        """The stream's handle, with the device current in this thread: for a library that makes
        handles and plans, or times them, before its work is asked for by `call`."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """All that ``work`` asks of this device, recorded and not run.

        ``work`` must not allocate, free, mark or synchronize, and what it runs ran before: kernels
        are loaded with their first launch, which cannot be recorded. What it raises is raised, and
        nothing is recorded.
        """

    def mark(self) -> Event:
        """The moment at which all work so far is done."""

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""

    def close(self) -> None:
        """Give back everything; the device cannot be used afterwards. May be called twice."""


def argument_bytes(arguments: ctypes.Structure) -> bytes:
    """A kernel's arguments as the bytes that are passed by value."""
    return ctypes.string_at(ctypes.addressof(arguments), ctypes.sizeof(arguments))


def contiguous_bytes(operation: str, array: Array) -> int:
    """The size of an array that is copied as a whole.

    Raises:
        ValueError: if it is not contiguous, which is a mistake of the caller.
    """
    if not array.flags.c_contiguous:
        raise ValueError(f"{operation}: the array must be contiguous, got strides {array.strides}")
    return int(array.nbytes)


def holds(spans: Iterable[Span], array: Array) -> bool:
    """Whether a contiguous array lies whole in one of ``spans``."""
    begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
    return any(start <= begin and end <= start + size for start, size in spans)


def out_of_memory(nbytes: int, free: int) -> BackendError:
    """The error of an allocation that does not fit."""
    return BackendError(
        f"CUDA: {nbytes:,} bytes of device memory were asked for and {free:,} are free.",
        "give a smaller image or a smaller scope, or close what else uses the GPU.",
    )


def device_lost(info: DeviceInfo, reason: str) -> BackendError:
    """The error after which a device is not asked anything any more."""
    return BackendError(
        f"CUDA: {info.name} does not answer any more ({reason}).",
        "other backends work; start the program again to use the GPU.",
    )


def byte_count(shape: Sequence[int], dtype: npt.DTypeLike) -> int:
    """Bytes of a contiguous array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
