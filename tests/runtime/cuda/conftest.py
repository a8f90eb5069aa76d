"""PyCUDA and cuda-bindings as tests have them: fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeadapt.runtime.cuda import pycuda_context, pycuda_device
from edgeadapt.runtime.cuda.pycuda_context import Contexts
from support.fake_cuda import FakeCuda


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCuda]:
    """A driver with one GPU, as `open_device` finds it; nobody may leave anything behind."""
    made = FakeCuda()
    made.install(monkeypatch)
    monkeypatch.setattr(pycuda_device, "contexts", Contexts())
    image = tmp_path / "kernels.fatbin"
    image.write_bytes(b"fatbin")
    monkeypatch.setattr(pycuda_context, "IMAGES", [lambda architecture: image])
    yield made
    assert made.depth == 0, "a context is left on this thread's stack"
    assert made.complaints == []
