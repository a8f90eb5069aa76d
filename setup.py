"""Compile the native engine where there is a C++ compiler; pyproject.toml says all else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = "edgeadapt.kernels"
SOURCE = Path(__file__).resolve().parent / "kernels" / "build.py"
_spec = importlib.util.spec_from_file_location("edgeadapt_build_native", SOURCE)
assert _spec is not None
assert _spec.loader is not None
native = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = native
_spec.loader.exec_module(native)


class BuildNative(build_ext):
    """Not an extension module: a library without Python in it, so any Python can open it."""

    def run(self) -> None:
        """Compile; without a compiler, say so and go on: another engine takes over."""
        place = self._source() if self.inplace else self._built()
        try:
            options = native.Options(flags=())
            native.build(place.parent, Path(self.build_temp) / "native", options)
        except native.BuildError as error:
            place.unlink(missing_ok=True)
            sys.stderr.write(f"edgeadapt is installed WITHOUT its native engine: {error}\n")

    def _built(self) -> Path:
        return Path(self.build_lib).joinpath(*PACKAGE.split("."), native.LIBRARY)

    def _source(self) -> Path:
        build_py = self.get_finalized_command("build_py")
        return Path(build_py.get_package_dir(PACKAGE)) / native.LIBRARY

    def get_outputs(self) -> list[str]:
        """The library, if there is one."""
        return [str(self._built())] if self._built().is_file() else []

    def get_output_mapping(self) -> dict[str, str]:
        """In an editable install: what would be installed -> where it is."""
        return {str(self._built()): str(self._source())} if self.inplace else {}


class Wheel(bdist_wheel):
    """For this platform if it holds the library, for any otherwise; for any Python in both."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        platform = super().get_tag()[2]
        built = self.get_finalized_command("build_ext").get_outputs()
        return ("py3", "none", platform if built else "any")


setup(
    ext_modules=[Extension(f"{PACKAGE}._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
