"""What several tests of doctor need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.recorded_machine import Recording


@pytest.fixture
def on(tmp_path: Path) -> Callable[[Callable[[Path], Recording]], Recording]:
    return lambda make: make(tmp_path)
