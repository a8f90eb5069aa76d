"""The networks that come with edgeadapt, and the names that open them."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path

__all__ = ["DEFAULT", "SHIPPED", "find_bundle", "shipped_names"]

SHIPPED = ("nano", "edge")  # each is bundles/NAME.bundle beside this file
DEFAULT = "edge"  # what "default" stands for


def find_bundle(name: str | Path) -> Path:
    """The folder of a bundle: a path as it is, or the name of one that ships.

    What exists comes first: in a folder that holds a file or folder ``edge``, "edge" is that one.
    What neither exists nor ships is returned as it is, for the reader to refuse.
    """
    asked = DEFAULT if str(name) == "default" else str(name)
    if asked not in SHIPPED or Path(name).exists():
        return Path(name)
    return Path(str(package_files("edgeadapt"))) / "bundles" / f"{asked}.bundle"


def shipped_names() -> str:
    """The names that `find_bundle` knows, for messages."""
    return f"{', '.join(SHIPPED)} or default, which is {DEFAULT}"
