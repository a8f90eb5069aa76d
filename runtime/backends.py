"""The backends there are, and which one `auto` means."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module
from numbers import Integral
from pathlib import Path

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, ConfigError, EngineWarning
from edgeadapt.runtime.backend import (
    PRECISIONS,
    Backend,
    BackendFactory,
    EngineOptions,
)
from edgeadapt.runtime.optimizer import F32

# Name -> (where its factory is, how to install what it needs).
BACKENDS = {
    "cuda": (
        "edgeadapt.runtime.cuda_backend:CudaBackend",
        "install edgeadapt anew",
    ),
    "native": (
        "edgeadapt.runtime.native_backend:NativeBackend",
        "install edgeadapt where there is a C++ compiler",
    ),
    "onnxruntime": (
        "edgeadapt.runtime.onnxruntime_backend:OnnxRuntimeBackend",
        "`pip install onnxruntime`",
    ),
    "onnxruntime-cuda": (
        "edgeadapt.runtime.onnxruntime_backend:OnnxRuntimeCudaBackend",
        "`pip install onnxruntime-gpu`",
    ),
    "onnxruntime-tensorrt": (
        "edgeadapt.runtime.onnxruntime_backend:OnnxRuntimeTensorrtBackend",
        "`pip install onnxruntime-gpu`",
    ),
    "tensorrt": (
        "edgeadapt.runtime.tensorrt_backend:TensorrtBackend",
        "install edgeadapt anew",
    ),
}
AUTO = "auto"
# What `auto` tries, in this order. An engine of TensorRT can take long to build: it is asked for.
AUTOMATIC = ("cuda", "native", "onnxruntime")
ON_CPU = ("native", "onnxruntime")
# What the drivers of GPUs, of Jetsons and of Windows' Linux put into /dev.
_GPU_FILES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg")

_said: set[str] = set()  # the reasons for another engine that were given in this process


def open_backend(
    name: str,
    bundle: Bundle,
    weights: F32,
    gradients: F32,
    options: EngineOptions | None = None,
) -> Backend:
    """Open the backend called ``name``; for ``auto`` the first that can run the bundle.

    Warns with an `EngineWarning`, once for each reason, if that is not the first.

    Raises:
        BackendError: if there is no such backend, its library is not installed, or it cannot run
            the bundle as asked.
        ConfigError: if an option is out of range.
    """
    if name not in [AUTO, *BACKENDS]:
        raise BackendError(
            f"there is no backend {name!r}.", f"use one of {', '.join([AUTO, *BACKENDS])}."
        )
    checked = _checked(options or EngineOptions())
    if checked.engine is not None and name != "tensorrt":
        raise ConfigError(f"an engine is for the backend tensorrt, got {name}.")
    if name != AUTO:
        return _factory(name)(bundle, weights, gradients, checked)
    reasons: list[str] = []
    for candidate in AUTOMATIC:
        if candidate == "cuda" and not has_gpu():
            continue  # no reason to say anything
        try:
            engine = _factory(candidate)(bundle, weights, gradients, checked)
        except BackendError as error:
            reasons.append(f"{candidate}: {error}")
            continue
        _say(candidate, reasons)
        return engine
    raise BackendError(
        f"no backend can run this bundle as asked: {' | '.join(reasons)}",
        "--backend with one of these names gives its reason alone.",
    )


def _say(chosen: str, reasons: list[str]) -> None:
    for reason in reasons:
        if reason not in _said:
            _said.add(reason)
            warnings.warn(f"{chosen} is used, for {reason}", EngineWarning, stacklevel=4)


def has_gpu() -> bool:
    """Whether this machine seems to have an NVIDIA GPU; asks no library."""
    devices = Path("/dev")
    return any(next(devices.glob(pattern), None) for pattern in _GPU_FILES)


def _factory(name: str) -> BackendFactory:
    target, install = BACKENDS[name]
    module, attribute = target.split(":")
    try:
        factory: BackendFactory = getattr(import_module(module), attribute)
    except ImportError as error:
        raise BackendError(f"the backend {name} cannot be loaded ({error}).", install) from error
    return factory


def _checked(options: EngineOptions) -> EngineOptions:
    if options.precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {options.precision!r}."
        )
    threads = _checked_count("threads", options.threads, "leave it out for the engine's choice.")
    budget = _checked_count(
        "memory_budget", options.memory_budget, "it is a number of bytes; leave it out for speed."
    )
    return replace(options, threads=threads, memory_budget=budget)


def _checked_count(name: str, value: object, hint: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name} must be a whole number, at least 1, got {value!r}.", hint)
    return int(value)
