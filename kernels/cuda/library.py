"""The compiled CUDA kernels: found, and compiled here where what ships does not fit a GPU.

Each file of csrc/ is a module of its own: a driver loads what is needed of them. Nothing here needs
a GPU, and a compiler only for a GPU that what ships was not compiled for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.build import (
    FATBIN,
    FLAGS,
    RECORD,
    BuildError,
    compile_cubin,
    find_nvcc,
    key_of,
    number,
)

CSRC = Path(str(files("edgeadapt.kernels"))) / "csrc"
HERE = Path(__file__).resolve().parent


class Kernels:
    """What was compiled into ``folder``, which may be nothing, from the files in ``sources``."""

    def __init__(self, folder: Path = HERE, sources: Path = CSRC) -> None:
        self._sources = sources
        self.fatbin = folder / FATBIN
        record: dict[str, Any] = {}
        if self.fatbin.is_file():
            record = _read(folder / RECORD)
        self.architectures: tuple[str, ...] = tuple(record.get("architectures", ()))
        self.ptx: str | None = record.get("ptx")
        self._modules: dict[str, Any] = record.get("modules", {})
        self._names = {name: m for m, parts in self._modules.items() for name in parts["kernels"]}

    def names(self) -> tuple[str, ...]:
        """The kernels that ship."""
        return tuple(self._names)

    def resources(self, kernel: str, architecture: str) -> dict[str, int]:
        """What a kernel that ships takes: registers, shared_bytes, stack_bytes, spill_bytes."""
        taken: dict[str, int] = self._modules[self._names[kernel]]["kernels"][kernel][architecture]
        return taken

    def images(self, kernel: str, architecture: str) -> Iterator[tuple[str, bytes]]:
        """Modules with ``kernel`` for a GPU, each with its name, until one is loaded.

        First what ships for it, then what was compiled here before, then what is compiled now and
        kept; last what ships as PTX, if the driver may compile that for the GPU.

        Raises:
            BackendError: if there is no such kernel, or after the last one, with what was missing.
        """
        if self._modules and kernel not in self._names:
            raise BackendError(
                f"there is no CUDA kernel {kernel!r} in {self.fatbin.name}.",
                "it is older than this program: run make fatbin, or install edgeadapt again.",
            )
        ships = kernel in self._names and self._current(self._names[kernel])
        fits = architecture in self.architectures
        if ships and fits:
            yield self._names[kernel], self._shipped(self._names[kernel])
        try:
            yield from self._compiled(kernel, architecture)
            reason = "the driver loads none of what there is; is it older than the compiler?"
        except BuildError as error:
            reason = str(error)
        newer = self.ptx is not None and number(architecture) > number(self.ptx)
        if ships and newer and not fits:
            yield self._names[kernel], self._shipped(self._names[kernel])
        raise BackendError(
            f"there is no CUDA kernel {kernel!r} for {architecture}: "
            f"{self.fatbin.name} holds {', '.join(self.architectures) or 'nothing'}, and {reason}"
        )

    def _current(self, module: str) -> bool:
        """Whether the file has not changed since."""
        source = self._sources / f"{module}.cu"
        return bool(source.is_file() and key_of(source) == self._modules[module]["key"])

    def _shipped(self, module: str) -> bytes:
        parts = self._modules[module]
        with self.fatbin.open("rb") as file:
            file.seek(parts["offset"])
            image = file.read(parts["bytes"])
        if len(image) != parts["bytes"]:
            raise BackendError(f"{self.fatbin} is cut off.", "install edgeadapt again.")
        return image

    def _compiled(self, kernel: str, architecture: str) -> Iterator[tuple[str, bytes]]:
        """From the user's cache, then new ones."""
        for source in self._likely(kernel):
            place = cache_folder() / f"{source.stem}-{architecture}-{key_of(source)[:24]}.cubin"
            kept = place.is_file()
            image = place.read_bytes() if kept else compile_and_keep(source, architecture, place)
            if not has_kernel(image, kernel):
                continue
            yield source.stem, image
            if kept:  # was refused: by another compiler than there is now, maybe
                yield source.stem, compile_and_keep(source, architecture, place)
            return
        raise BuildError(f"no file of {self._sources.name}/ has such a kernel")

    def _likely(self, kernel: str) -> list[Path]:
        """The files that may have a kernel, whose name a macro may have made up."""
        if kernel in self._names:
            return [self._sources / f"{self._names[kernel]}.cu"]
        sources = self._sources.glob("*.cu")
        return sorted(sources, key=lambda one: (kernel not in one.read_text(), one.name))


def _read(place: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(
            f"what was recorded of the CUDA kernels cannot be read: {error}.",
            "install edgeadapt again.",
        ) from None
    return record


@cache
def open_kernels() -> Kernels:
    """Those of this installation.

    Raises:
        BackendError: if their record cannot be read.
    """
    return Kernels()


def has_kernel(cubin: bytes, kernel: str) -> bool:
    """Whether a module has a kernel; each is a section of its own there."""
    return f"\0.text.{kernel}\0".encode() in cubin


def cache_folder() -> Path:
    """Where what is compiled here is kept: $EDGEADAPT_CACHE, or the user's folder of caches."""
    given = os.environ.get("EDGEADAPT_CACHE", "")
    if given:
        return Path(given)
    usual = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(usual) if usual else Path.home() / ".cache") / "edgeadapt"


def compile_and_keep(source: Path, architecture: str, place: Path) -> bytes:
    """Compile with nvcc, else with NVRTC; what cannot be kept is compiled again the next time.

    Raises:
        BuildError: if there is neither, or what there is refuses the file or the architecture.
    """
    try:
        nvcc = find_nvcc()
    except BuildError as error:
        image = compile_with_nvrtc(source, architecture)
        if image is None:
            raise BuildError(f"{error}; nor is NVRTC there: pip install cuda-bindings") from None
    else:
        image = compile_cubin(nvcc, source, architecture)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Whoever reads at the same time sees all of it, or nothing.
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(image)
        Path(file.name).replace(place)
    except OSError:
        pass
    return image


def compile_with_nvrtc(source: Path, architecture: str) -> bytes | None:
    """The compiler that comes as a library, through cuda-bindings; None if either is missing.

    Raises:
        BuildError: if it refuses the file or the architecture.
    """
    try:
        from cuda.bindings import nvrtc  # pyright: ignore[reportMissingImports]

        error, program = nvrtc.nvrtcCreateProgram(
            source.read_bytes(), source.name.encode(), 0, [], []
        )
    except (ImportError, RuntimeError):  # the latter: the bindings are there, the library is not
        return None
    options = [FLAGS[0].encode(), b"-default-device", f"--gpu-architecture={architecture}".encode()]
    options.append(f"--include-path={source.parent}".encode())
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytes(nvrtc.nvrtcGetProgramLogSize(program)[1])
        nvrtc.nvrtcGetProgramLog(program, log)
        said = log.rstrip(b"\0").decode(errors="replace").strip()
        raise BuildError(f"NVRTC refuses {source.name} for {architecture}: {error.name} {said}")
    image = bytes(nvrtc.nvrtcGetCUBINSize(program)[1])
    nvrtc.nvrtcGetCUBIN(program, image)
    nvrtc.nvrtcDestroyProgram(program)
    return image
