"""The compiled kernels: found, opened, and every function of the library declared.

A call is a kernel's address and the address of its arguments; a program is an array of calls that
one function runs. Who makes a call keeps its arguments, and what they point to, alive.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from edgeadapt.errors import BackendError

HERE = Path(__file__).resolve().parent
# float32 in a vector of each level (csrc/simd.h).
LANES = {"baseline": 4, "avx2": 8, "avx512": 16, "avx512_bf16": 16, "neon": 4, "neon_bf16": 4}
SCRATCH = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


class Entry(ctypes.Structure):
    """`Entry` of csrc/abi.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("run", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("argument_bytes", ctypes.c_int64),
    )


class Call(ctypes.Structure):
    """`Call` of csrc/abi.h; an array of them is a program."""

    _fields_ = (("run", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


class Kernel(NamedTuple):
    """One kernel at one level."""

    address: int
    scratch: Any  # (address of the arguments, threads) -> bytes of working memory
    argument_bytes: int

    def scratch_bytes(self, arguments: ctypes.Structure, threads: int) -> int:
        """Bytes of working memory that a call needs; only sizes in ``arguments`` are looked at."""
        return int(self.scratch(ctypes.addressof(arguments), threads))

    def call(self, arguments: ctypes.Structure) -> Call:
        """A call, for an array of them; ``arguments`` must outlive it."""
        return Call(self.address, ctypes.addressof(arguments))


class Library:
    """An opened library."""

    def __init__(self, path: Path) -> None:
        try:
            self._functions = _declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"the native engine's library {path} cannot be opened: {error}.",
                "build it again: python -m edgeadapt.kernels.build",
            ) from None
        self._kernels: dict[str, Mapping[str, Entry]] = {}
        self.path = path
        # What this library holds and this CPU has, the best one last.
        self.levels = tuple(self._levels())

    def kernel(self, level: str, name: str, arguments: type[ctypes.Structure]) -> Kernel:
        """The kernel ``name``, whose arguments are an ``arguments``.

        Raises:
            BackendError: if the library does not have it, or its arguments are others.
        """
        entry = self._entries(level).get(name)
        if entry is None:
            raise BackendError(
                f"{self.path.name} has no kernel {name!r} at level {level!r}.",
                "build it again: python -m edgeadapt.kernels.build",
            )
        size = ctypes.sizeof(arguments)
        if entry.argument_bytes != size:
            raise BackendError(
                f"{name}: {arguments.__name__} has {size} bytes, {self.path.name} expects "
                f"{entry.argument_bytes}.",
                "build it again: python -m edgeadapt.kernels.build",
            )
        return Kernel(entry.run, SCRATCH(entry.scratch), size)

    def names(self, level: str) -> tuple[str, ...]:
        """The kernels of a level."""
        return tuple(self._entries(level))

    def team(self, threads: int) -> Team:
        """A new team of ``threads`` threads, the calling one among them."""
        return Team(self._functions, threads)

    def run(self, calls: Any, team: Team, nanoseconds: Any = None) -> None:
        """Run an array of `Call`; what each takes goes to ``nanoseconds``, an array of int64.

        Make both with ctypes, ``(Call * n)(...)`` and ``(c_int64 * n)()``. The interpreter is free
        for other threads in the meantime.
        """
        if team.address is None:
            raise BackendError("the team is closed.")
        if nanoseconds is not None and len(nanoseconds) < len(calls):
            raise ValueError(f"{len(calls)} calls need as many times, not {len(nanoseconds)}")
        self._functions.ea_run(calls, len(calls), team.address, nanoseconds)

    def _levels(self) -> list[str]:
        found: list[str] = []
        while name := self._functions.ea_level(len(found)):
            found.append(name.decode())
        return found

    def _entries(self, level: str) -> Mapping[str, Entry]:
        if level not in self.levels:
            raise BackendError(
                f"no level {level!r} on this machine; there are {', '.join(self.levels)}."
            )
        if level not in self._kernels:
            found: list[Entry] = []
            while entry := self._functions.ea_entry(level.encode(), len(found)):
                found.append(entry.contents)
            self._kernels[level] = {entry.name.decode(): entry for entry in found}
        return self._kernels[level]


class Team:
    """Threads that run programs; the calling thread is the first of them."""

    def __init__(self, functions: Any, threads: int) -> None:
        self.threads = threads
        self.address: int | None = functions.ea_create_team(threads)
        if not self.address:
            raise BackendError(f"cannot start a team of {threads!r} threads.")
        self._close = weakref.finalize(self, _destroy, functions, self.address, os.getpid())
        # Not when the process ends, which ends the threads: a daemon thread may be in a program.
        self._close.atexit = False

    def close(self) -> None:
        """End the threads; the team cannot be used afterwards."""
        self.address = None
        self._close()


def _destroy(functions: Any, address: int, process: int) -> None:
    if os.getpid() == process:  # a fork has the memory but not the threads, and would wait for them
        functions.ea_destroy_team(address)


def _declare(library: Any) -> Any:
    """Give every function its types."""
    address, integer, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    signatures: Mapping[str, tuple[Any, Sequence[Any]]] = {
        "ea_level": (text, (integer,)),
        "ea_entry": (ctypes.POINTER(Entry), (text, integer)),
        "ea_create_team": (address, (integer,)),
        "ea_destroy_team": (None, (address,)),
        "ea_run": (None, (ctypes.POINTER(Call), integer, address, ctypes.POINTER(integer))),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(arguments)
    return library


def library_path() -> Path:
    """Where the library is, or would be: $EDGEADAPT_LIBRARY or beside this file."""
    given = os.environ.get("EDGEADAPT_LIBRARY", "")
    return Path(given) if given else HERE / "_native.so"


@cache
def open_library() -> Library:
    """The library of this installation.

    Raises:
        BackendError: if it was not built, or cannot be opened.
    """
    path = library_path()
    if not path.is_file():
        raise BackendError(
            f"the native engine was not built: there is no {path}.",
            "install a C++ compiler (on Debian: apt-get install g++), then run "
            "python -m edgeadapt.kernels.build",
        )
    return Library(path)
