"""What several tests of benchmarks/ need."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle that no test changes."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny.bundle")
