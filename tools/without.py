"""A plugin for pytest: tests that import what a device does not have are skipped, and say so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

MISSING = ("lightning_fabric", "matplotlib", "torch")


class Refuse:
    """Finds no module; skips whoever asks for one of `MISSING`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Called by Python for every import."""
        package = name.partition(".")[0]
        if package in MISSING:
            pytest.skip(f"needs {package}", allow_module_level=True)


sys.meta_path.insert(0, Refuse())
