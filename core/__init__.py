"""edgeadapt: test-time adaptation of image restoration networks on devices without PyTorch."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if __name__ != "edgeadapt":
    raise ImportError(
        "this folder is installed as `edgeadapt`; run `pip install -e .` and import that"
    )

if TYPE_CHECKING:
    from edgeadapt.runtime.session import Session as Session

__version__ = version("edgeadapt")
__all__ = ["Session", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that printing a version or help does not open an engine's library.
    if name == "Session":
        from edgeadapt.runtime.session import Session

        return Session
    raise AttributeError(f"module 'edgeadapt' has no attribute {name!r}")
