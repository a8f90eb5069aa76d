"""PyCUDA and cuda-bindings are imported here, when a GPU is asked for; says what is missing."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from edgeadapt.errors import BackendError, one_line

OLDEST_DRIVER = (12, 0)  # what cuda-bindings 12 and the launches of graphs need


class CallError(Exception):
    """cuda-bindings returned an error."""


class Libraries(NamedTuple):
    """What drives a GPU."""

    driver: Any  # pycuda.driver, initialised
    bindings: Any  # cuda.bindings.driver
    versions: tuple[tuple[str, str], ...]
    knows: tuple[int, int]  # the newest CUDA that the installed driver knows

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What they raise when CUDA refuses."""
        return (self.driver.Error, CallError)

    def bound(self, function: str, *arguments: Any) -> Any:
        """What a function of cuda-bindings returns beside its error code.

        Raises:
            CallError: with CUDA's name of the error.
        """
        try:
            code, *values = getattr(self.bindings, function)(*arguments)
        except Exception as error:  # of several kinds, for a function that the driver lacks
            raise CallError(f"{function} failed: {one_line(error)}") from error
        if code != self.bindings.CUresult.CUDA_SUCCESS:
            raise CallError(f"{function} failed: {getattr(code, 'name', code)}")
        return values[0] if values else None


def import_libraries() -> Libraries:
    """PyCUDA and cuda-bindings, and a driver that is new enough for both.

    Raises:
        BackendError: if one of them is missing or too old, or there is no GPU; says which.
    """
    pycuda = _pycuda()
    bindings = _bindings()
    driver = pycuda.driver
    try:
        driver.init()
        version = int(driver.get_driver_version())
    except driver.Error as error:
        raise no_gpu(one_line(error)) from error
    versions = (("pycuda", pycuda.VERSION_TEXT), ("cuda-bindings", bindings.__version__))
    knows = (version // 1000, version % 1000 // 10)
    found = Libraries(driver, bindings.driver, versions, knows)
    _check_versions(found)
    return found


def has_driver() -> bool:
    """Whether the library of NVIDIA's driver can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def no_gpu(reason: str) -> BackendError:
    """The error where CUDA finds no device that it can use."""
    return BackendError(
        f"CUDA cannot use a GPU here ({reason}).",
        "look at nvidia-smi and $CUDA_VISIBLE_DEVICES; a container must be given its GPU.",
    )


def _pycuda() -> Any:
    def install(error: ImportError) -> BackendError:
        text = one_line(error)
        if "libcuda.so" in text:
            return BackendError(f"there is no NVIDIA driver ({text}).", "install NVIDIA's driver.")
        if "undefined symbol: cu" in text:
            return BackendError(
                f"the NVIDIA driver is older than the CUDA that PyCUDA was built with ({text}).",
                "update the driver, or build PyCUDA with the driver's CUDA: docs/dependencies.md.",
            )
        return BackendError(
            f"PyCUDA cannot be loaded ({text}).",
            "build it again on this machine: docs/dependencies.md.",
        )

    _import("pycuda.driver", "PyCUDA", "pycuda", install)
    return import_module("pycuda")


def _bindings() -> Any:
    def install(error: ImportError) -> BackendError:
        return BackendError(
            f"cuda-bindings cannot be loaded ({one_line(error)}).",
            "`pip install --force-reinstall cuda-bindings`",
        )

    _import("cuda.bindings.driver", "cuda-bindings", "cuda-bindings", install)
    return import_module("cuda.bindings")


def _import(
    module: str, name: str, package: str, broken: Callable[[ImportError], BackendError]
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyCUDA's, about what it raises as well
            import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            raise _not_installed(name, package) from error
        raise broken(error) from error
    except ImportError as error:
        raise broken(error) from error


def _not_installed(name: str, package: str) -> BackendError:
    hint = f"`pip install {package}`"
    if package == "pycuda":
        if not has_driver():  # who has no GPU should not compile PyCUDA in vain
            return BackendError(
                f"there is no NVIDIA driver here (libcuda.so.1), and {name} is not installed.",
                "the other backends run on the CPU; docs/jetson.md says what a GPU needs.",
            )
        hint += " (it is compiled: needs nvcc and a C++ compiler, see docs/dependencies.md)"
    return BackendError(f"{name} is not installed.", f"{hint}.")


def _check_versions(found: Libraries) -> None:
    knows = "{}.{}".format(*found.knows)
    if found.knows < OLDEST_DRIVER:
        raise BackendError(
            f"the NVIDIA driver knows CUDA {knows}, {'{}.{}'.format(*OLDEST_DRIVER)} is needed.",
            "update the driver.",
        )
    built = tuple(found.driver.get_version()[:2])
    if found.knows[0] < built[0]:
        raise BackendError(
            f"the NVIDIA driver knows CUDA {knows}, PyCUDA was built with {built[0]}.{built[1]}.",
            "update the driver, or build PyCUDA with the driver's CUDA: docs/dependencies.md.",
        )
    try:
        found.bound("cuDriverGetVersion")
    except CallError as error:
        raise BackendError(
            f"cuda-bindings {dict(found.versions)['cuda-bindings']} does not work with this "
            f"driver, which knows CUDA {knows} ({error}).",
            f'`pip install "cuda-bindings=={found.knows[0]}.*"`.',
        ) from error
