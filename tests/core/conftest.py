"""What several tests of core/ need."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A bundle of its own for each test, so that it may be damaged."""
    return write_tiny_bundle(tmp_path / "tiny.bundle")
