"""A GPU's primary context and the kernels in it, shared by all devices that a process opens on it.

What is true of PyCUDA (2026.1, src/cpp/cuda.hpp) and decides how this and pycuda_device.py look:

* A context is pushed before and popped after every call; a thread that ends with one on PyCUDA's
  stack ends the process. While it is pushed any thread may use and drop what belongs to it;
  otherwise only the thread that made the context can, and others leak it with a warning.
* Objects give back what they hold when they are dropped. In a fork, after an error that the GPU
  does not recover from, and at the end of the process, that fails with lines on stderr. There they
  are kept for ever: the driver frees what they held, or has done so.
* The primary context is never released: other libraries in this process may have it current.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from edgeadapt.errors import BackendError, one_line
from edgeadapt.kernels.cuda.library import open_kernels
from edgeadapt.runtime.cuda.device import DeviceInfo
from edgeadapt.runtime.cuda.pycuda_import import Libraries, import_libraries, no_gpu

# PyCUDA's objects by a number each, those of one device.
Things = dict[int, Any]
ALL = -1


class Context:
    """The primary context of one GPU. Any thread may use it."""

    def __init__(self, libraries: Libraries, ordinal: int) -> None:
        self.libraries = libraries
        self._lost: BackendError | None = None
        self._lock = threading.RLock()
        self._things: list[Things] = []
        self._dropped: deque[tuple[Things, int]] = deque()
        self._recording: set[int] = set()  # threads
        try:
            gpu = libraries.driver.Device(ordinal)
            self.info = _describe(libraries, gpu)
            self._primary = gpu.retain_primary_context()
        except libraries.driver.Error as error:
            raise no_gpu(one_line(error)) from error
        self._keys = count()
        self.own = self.new_things()  # the context's, and what outlives the device that made it
        self.keep(self.own, self._primary)
        self._functions: dict[str, tuple[Any, int]] = {}
        self._modules: dict[str, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """With this context current in this thread.

        Raises:
            BackendError: if it is lost.
        """
        self.check()
        context = self.libraries.driver.Context
        self._primary.push()
        try:
            yield
        finally:
            try:
                context.pop()
            except self.libraries.driver.Error:
                self._primary.detach()  # takes it off PyCUDA's stack, whatever the driver says
                raise

    def check(self) -> None:
        """Raise the reason if this context is lost."""
        if self._lost is not None:
            raise BackendError(self._lost.message, self._lost.hint)

    def lose(self, error: BackendError) -> None:
        """Ask nothing of this context any more; `check` raises ``error`` from now on."""
        with self._lock:
            if self._lost is None:
                self._lost = error
                for things in self._things:
                    _keep_for_ever(things)

    def forked(self) -> None:
        """In the child of a fork: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()
        self.lose(
            BackendError(
                "CUDA cannot be used in a process that was forked from one that uses it.",
                'start processes with multiprocessing\'s "spawn", or use another backend.',
            )
        )

    def new_things(self) -> Things:
        """Where a device keeps its objects."""
        things: Things = {}
        with self._lock:
            self._things.append(things)
        return things

    def keep(self, things: Things, thing: Any) -> int:
        """Hold on to one object; returns its number, to `drop` it."""
        key = next(self._keys)
        things[key] = thing
        return key

    def drop(self, things: Things, key: int) -> None:
        """Give back one object, or `ALL`. Finalizers do this, from any thread at any time."""
        self._dropped.append((things, key))
        self.sweep()

    def sweep(self) -> None:
        """Give back what was dropped, unless this thread records: that would spoil the graph."""
        if self._lost is not None or threading.get_ident() in self._recording or not self._dropped:
            return
        # What fails here fails again where there is someone to tell.
        with suppress(BackendError, IndexError, *self.libraries.errors), self.current():
            while self._dropped:
                things, key = self._dropped.popleft()
                if key != ALL:
                    things.pop(key, None)
                    continue
                things.clear()
                with self._lock:
                    self._things[:] = [other for other in self._things if other is not things]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Nothing is given back by this thread meanwhile."""
        thread = threading.get_ident()
        self._recording.add(thread)
        try:
            yield
        finally:
            self._recording.discard(thread)

    def function(self, name: str, argument_bytes: int | None = None) -> Any:
        """A kernel, ready for arguments of that size; the context is current.

        Raises:
            BackendError: if there is none of that name.
        """
        with self._lock:
            if name not in self._functions:
                self._functions[name] = (self._find(name), -1)
            function, size = self._functions[name]
            if argument_bytes is not None and size != argument_bytes:
                if size != -1:
                    raise ValueError(f"{name} takes {size} bytes, got {argument_bytes}")
                function.prepare((f"{argument_bytes}s",))  # one parameter, passed by value
                self._functions[name] = (function, argument_bytes)
            return function

    def _find(self, name: str) -> Any:
        driver, refused = self.libraries.driver, ""
        try:
            for module, image in open_kernels().images(name, self.info.architecture):
                try:
                    if module not in self._modules:
                        self._modules[module] = driver.module_from_buffer(image)
                        self.keep(self.own, self._modules[module])
                    return self._modules[module].get_function(name)
                except driver.Error as error:
                    refused = f" ({one_line(error)})"
                    self._modules.pop(module, None)  # the next one is another
        except BackendError as error:
            raise BackendError(f"{error.message}{refused}", error.hint) from error
        raise BackendError(f"there is no CUDA kernel {name!r}{refused}.")


def _keep_for_ever(things: Things) -> None:
    """A reference too many: what is in there is never dropped."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))


def _describe(libraries: Libraries, gpu: Any) -> DeviceInfo:
    attribute = libraries.driver.device_attribute
    major, minor = gpu.compute_capability()
    return DeviceInfo(
        name=str(gpu.name()),
        capability=(int(major), int(minor)),
        memory_bytes=int(gpu.total_memory()),
        multiprocessors=int(gpu.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
        unified=bool(gpu.get_attribute(attribute.INTEGRATED)),
        driver=libraries.knows,
        libraries=libraries.versions,
    )


class Contexts:
    """The contexts of this process, one for each GPU that was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Context] = {}

    def get(self, ordinal: int) -> Context:
        """The context on a GPU, which is made when it is first asked for; perhaps it is lost.

        Raises:
            BackendError: if something is missing for that.
        """
        with self._lock:
            if ordinal not in self._open:
                self._open[ordinal] = Context(import_libraries(), ordinal)
            return self._open[ordinal]

    def after_fork(self) -> None:
        """In the child: no context works there, and nobody is left to open a lock."""
        self._lock = threading.Lock()
        for context in self._open.values():
            context.forked()

    def at_exit(self) -> None:
        """Leave everything to the driver: other threads may be at work still."""
        for context in self._open.values():
            context.lose(BackendError("CUDA cannot be used any more: the process ends."))


contexts = Contexts()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=contexts.after_fork)
atexit.register(contexts.at_exit)
