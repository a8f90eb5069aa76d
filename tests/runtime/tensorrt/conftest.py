"""A folder for what is kept, and TensorRT: the one that is installed here, or a fake of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.tensorrt.library import Library, find_library


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of caches."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEADAPT_CACHE", str(folder))
    return folder


@pytest.fixture
def bundle() -> Bundle:
    return open_bundle("nano")


@pytest.fixture
def rtx() -> Library:
    """TensorRT-RTX as it is installed; the extra `test` has it on Linux on x86-64."""
    try:
        return find_library("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(str(error))
