"""The CUDA kernels compiled for the host by g++ behind cuda_shim.h, one library for each file.

A file that does not compile takes only its own kernels with it. EDGEADAPT_CUDA_SANITIZE, as in
"address,undefined", is handed to the compiler as what it should look for.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from edgeadapt.kernels.build import BuildError, Options, compile_file, find_compiler, run_compiler
from edgeadapt.kernels.cuda.launch import Launch
from support.tree import ROOT

SOURCES = ROOT / "kernels/csrc"
SUPPORT = ROOT / "tests/support"
SANITIZE = os.environ.get("EDGEADAPT_CUDA_SANITIZE", "")
BUILD = ROOT / "build" / ("cuda_host_sanitize" if SANITIZE else "cuda_host")
FLAGS = (
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-fno-exceptions", "-fno-rtti"),
    *("-fno-threadsafe-statics", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-I", str(SUPPORT)),
)


class HostError(Exception):
    """There is no such kernel, or it did what a GPU forbids or leaves undefined."""


class Entry(ctypes.Structure):
    """The beginning of `Kernel` in cuda_shim.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("argument_bytes", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class Library:
    """The kernels of one file; one at a time runs, whichever thread calls."""

    def __init__(self, path: Path) -> None:
        library = ctypes.PyDLL(str(path))  # holds the interpreter's lock: the shim has one state
        library.ea_host_kernel.restype = ctypes.POINTER(Entry)
        library.ea_host_kernel.argtypes = [ctypes.c_int64]
        library.ea_host_run.restype = ctypes.c_char_p
        library.ea_host_run.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int64]
        self._run = library.ea_host_run
        self.kernels: dict[str, Any] = {}
        while entry := library.ea_host_kernel(len(self.kernels)):
            self.kernels[entry.contents.name.decode()] = entry

    def run(self, launch: Launch, backward: bool = False) -> None:
        """Run all blocks, ``backward``: the last block and the last thread of each first.

        Raises:
            HostError: if arguments have another size, or the kernel does what no GPU allows.
        """
        entry = self.kernels[launch.kernel]
        size = ctypes.sizeof(launch.arguments)
        if entry.contents.argument_bytes != size:
            raise HostError(
                f"{launch.kernel}: {type(launch.arguments).__name__} has {size} bytes, the kernel "
                f"expects {entry.contents.argument_bytes}"
            )
        grid, block = ((ctypes.c_int64 * 3)(*extent) for extent in (launch.grid, launch.block))
        said = self._run(entry, grid, block, ctypes.addressof(launch.arguments), backward)
        if said:
            raise HostError(said.decode())


def run_on_host(launch: Launch, backward: bool = False) -> None:
    """Run a launch; the addresses in its arguments are those of this process.

    Raises:
        HostError: if no file has the kernel, or as `Library.run`.
    """
    library_of(launch.kernel).run(launch, backward)


@cache
def library_of(kernel: str) -> Library:
    """The library that has ``kernel``.

    Raises:
        HostError: if none has, with what the compiler says about files that it refuses.
    """

    sources = [*SOURCES.glob("*.cu"), *SUPPORT.glob("*.cu")]
    refused = []
    # A macro may make up the name of a kernel, so the others are searched, too.
    for source in sorted(sources, key=lambda one: (kernel not in one.read_text(), one.name)):
        try:
            library = open_library(source)
        except BuildError as error:
            refused.append(f"{source.name} does not compile: {error}")
            continue
        if kernel in library.kernels:
            return library
    told = [f"no .cu file that compiles has a kernel {kernel!r}", *refused]
    raise HostError("\n".join(told))


@cache
def open_library(source: Path) -> Library:
    """Compile what changed of one .cu file, and open it.

    Raises:
        BuildError: if the compiler refuses it.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Library(_build(source))


def _build(source: Path) -> Path:
    command = [*find_compiler(Options()), *FLAGS]
    if SANITIZE:
        command += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-O1"]
    shim = ["-I", str(SOURCES), "-x", "c++", "-include", str(SUPPORT / "cuda_shim.h")]
    files = [(source, [*command, *shim])]
    files += [(SUPPORT / f"{stem}.cpp", command) for stem in ("cuda_shim", "cuda_shim_numbers")]
    # Each library has objects of its own: no other process compiles them at the same time.
    objects = [
        compile_file(file, BUILD / f"{source.stem}.{file.stem}.o", flags, lambda text: None)
        for file, flags in files
    ]
    library = BUILD / f"{source.stem}.so"
    if not library.is_file() or any(_time(made) >= _time(library) for made in objects):
        fresh = library.with_name(f"{library.name}.{os.getpid()}")
        run_compiler([*command, "-shared", *map(str, objects), "-o", str(fresh)])
        now = time.time_ns()
        os.utime(fresh, ns=(now, now))
        fresh.replace(library)
    return library


def _time(file: Path) -> int:
    return file.stat().st_mtime_ns
