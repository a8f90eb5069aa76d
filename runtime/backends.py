"""The backends there are, and which one `auto` means."""

from __future__ import annotations

from importlib import import_module
from numbers import Integral

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.backend import F32, Backend, BackendFactory

# Name -> (where its factory is, how to install what it needs); the first that imports is what
# `auto` takes.
BACKENDS = {
    "onnxruntime": (
        "edgeadapt.runtime.onnxruntime_backend:OnnxRuntimeBackend",
        "`pip install onnxruntime`",
    ),
}
AUTO = "auto"


def open_backend(
    name: str, bundle: Bundle, weights: F32, gradients: F32, threads: int | None = None
) -> Backend:
    """Open the backend called ``name``, or the first that is installed for ``auto``.

    Raises:
        BackendError: if there is no such backend, its library is not installed, or it cannot run
            the bundle.
        ConfigError: if ``threads`` is no whole number from 1 up.
    """
    if name not in [AUTO, *BACKENDS]:
        raise BackendError(
            f"there is no backend {name!r}.", f"use one of {', '.join([AUTO, *BACKENDS])}."
        )
    return _factory(name)(bundle, weights, gradients, _checked_threads(threads))


def _factory(name: str) -> BackendFactory:
    missing = []
    for candidate in BACKENDS if name == AUTO else [name]:
        target, install = BACKENDS[candidate]
        module, attribute = target.split(":")
        try:
            factory: BackendFactory = getattr(import_module(module), attribute)
            return factory
        except ImportError as error:
            missing.append((f"{candidate} ({error})", install))
    raise BackendError(
        f"no backend can be loaded: {'; '.join(text for text, _ in missing)}.",
        f"install one: {' or '.join(install for _, install in missing)}.",
    )


def _checked_threads(threads: object) -> int | None:
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:
        raise ConfigError(
            f"threads must be a whole number, at least 1, got {threads!r}.",
            "leave it out for the engine's choice.",
        )
    return int(threads)
