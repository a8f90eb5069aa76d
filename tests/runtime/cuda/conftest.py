"""PyCUDA and cuda-bindings as tests have them: fakes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeadapt.runtime.cuda import pycuda_context, pycuda_device
from edgeadapt.runtime.cuda.pycuda_context import Contexts
from support.fake_cuda import FakeCuda, FakeKernels


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A driver with one GPU, as `open_device` finds it; nobody may leave anything behind."""
    made = FakeCuda()
    made.install(monkeypatch)
    monkeypatch.setattr(pycuda_device, "contexts", Contexts())
    monkeypatch.setattr(pycuda_context, "open_kernels", FakeKernels)
    yield made
    assert made.depth == 0, "a context is left on this thread's stack"
    assert made.complaints == []
