"""PyCUDA, cuda-bindings and cuDNN as tests have them: fakes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from edgeadapt.runtime.cuda import pycuda_context, pycuda_device
from edgeadapt.runtime.cuda.cudnn_plans import Cudnn, open_cudnn
from edgeadapt.runtime.cuda.pycuda_context import Contexts
from support.fake_cuda import FakeCuda, FakeKernels
from support.fake_cudnn import FakeCudnn
from support.host_device import HostDevice


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


@pytest.fixture
def fake_cudnn(monkeypatch: pytest.MonkeyPatch) -> FakeCudnn:
    """cuDNN's frontend, which computes on host memory."""
    made = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", made)
    return made


@pytest.fixture
def cudnn(fake_cudnn: FakeCudnn) -> Cudnn:
    """That for a device on the host."""
    found = open_cudnn(HostDevice())
    assert found is not None
    return found
