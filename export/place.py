"""Where a bundle may be written: an export replaces a bundle, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeadapt.bundle import MANIFEST, WEIGHTS
from edgeadapt.errors import ExportError
from edgeadapt.files import may_write


def check_place(path: Path) -> None:
    """Refuse an output that could not be written, or that holds anything but a bundle.

    Raises:
        ExportError: naming what is in the way.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        _check_replaceable(path)
    if not may_write(path.parent) or not path.parent.is_dir():
        raise ExportError(
            f"{path.parent}: not a folder that can be written to.", "create it, or choose another."
        )


def _check_replaceable(path: Path) -> None:
    listed = _listed_files(path)
    if listed is None:
        raise ExportError(f"{path}: exists and is not a bundle.", "choose another output folder.")
    # The whole folder is exchanged, so whatever else lies in it would be lost.
    known = {MANIFEST, *listed}
    strange = [item.name for item in path.iterdir() if item.name not in known or item.is_dir()]
    if strange:
        raise ExportError(
            f"{path}: holds {min(strange)!r}, which is no part of the bundle there.",
            "choose another output folder, or move it away.",
        )


def _listed_files(path: Path) -> Iterable[str] | None:
    """Names of the files that a bundle's manifest lists, whatever its version and state; None if
    there is no such manifest.
    """
    try:
        document: Any = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or type(document.get("format_version")) is not int:
        return None
    files = document.get("files")
    return files if isinstance(files, dict) and WEIGHTS in files else None
