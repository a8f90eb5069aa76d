"""Compile the native engine if there is a C++ compiler, and the CUDA kernels if there is nvcc.

pyproject.toml says all else. EDGEADAPT_REQUIRE_CUDA=1 refuses to go without the CUDA kernels.
_PYTHON_HOST_PLATFORM=linux-aarch64, Python's own variable for it, makes a wheel for another CPU,
with a compiler like aarch64-linux-gnu-g++.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

PACKAGE = "edgeadapt.kernels"
ROOT = Path(__file__).resolve().parent


def load(name: str, file: str) -> ModuleType:
    """A module of a package that is not installed yet."""
    spec = importlib.util.spec_from_file_location(name, ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def target() -> str:
    """The CPU that the wheel is for; "" if it has no levels of its own."""
    name = sysconfig.get_platform().removeprefix("linux-")
    return name if name in native.LEVELS else ""


native = load("edgeadapt_build_native", "kernels/build.py")
cuda = load("edgeadapt_build_cuda", "kernels/cuda/build.py")
CUDA_FILES = (cuda.FATBIN, cuda.RECORD)


class BuildNative(build_ext):
    """Not an extension module: a library without Python in it, so any Python can open it."""

    def run(self) -> None:
        """Compile; without a compiler, say so and go on: another engine takes over."""
        self._compile_native()
        self._compile_cuda()

    def _compile_native(self) -> None:
        place = self._source() if self.inplace else self._built()
        try:
            options = native.Options(flags=(), target=target())
            native.build(place.parent, Path(self.build_temp) / "native", options)
        except native.BuildError as error:
            place.unlink(missing_ok=True)
            sys.stderr.write(f"edgeadapt is installed WITHOUT its native engine: {error}\n")

    def _compile_cuda(self) -> None:
        place = (self._source() if self.inplace else self._built()).parent / "cuda"
        try:
            # Takes minutes, which `make fatbin` and tests share.
            cuda.build(place, ROOT / "build/cuda")
        except cuda.BuildError as error:
            for name in CUDA_FILES:
                (place / name).unlink(missing_ok=True)
            if os.environ.get("EDGEADAPT_REQUIRE_CUDA", "0") not in ("", "0"):
                raise CompileError(f"EDGEADAPT_REQUIRE_CUDA is set: {error}") from None
            sys.stderr.write(f"edgeadapt is installed WITHOUT its CUDA kernels: {error}\n")

    def _built(self) -> Path:
        return Path(self.build_lib).joinpath(*PACKAGE.split("."), native.LIBRARY)

    def _source(self) -> Path:
        build_py = self.get_finalized_command("build_py")
        return Path(build_py.get_package_dir(PACKAGE)) / native.LIBRARY

    def get_outputs(self) -> list[str]:
        """The library and the CUDA kernels, as far as there are any."""
        return [str(file) for file in self._files(self._built()) if file.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        """In an editable install: what would be installed -> where it is."""
        pairs = zip(self._files(self._built()), self._files(self._source()), strict=True)
        return {str(one): str(other) for one, other in pairs} if self.inplace else {}

    def _files(self, library: Path) -> list[Path]:
        return [library, *(library.parent / "cuda" / name for name in CUDA_FILES)]

    @property
    def has_native(self) -> bool:
        """Whether there is something that only this platform runs."""
        return self._built().is_file()


class Wheel(bdist_wheel):
    """For this platform if it holds the library, for any otherwise; for any Python in both."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        platform = super().get_tag()[2]
        native = self.get_finalized_command("build_ext").has_native
        return ("py3", "none", platform if native else "any")


setup(
    ext_modules=[Extension(f"{PACKAGE}._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
