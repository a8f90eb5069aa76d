from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BackendError, ConfigError, EngineWarning
from edgeadapt.runtime import backends
from edgeadapt.runtime.backend import Backend, EngineOptions, Precision
from edgeadapt.runtime.backends import open_backend
from edgeadapt.runtime.native_backend import NativeBackend
from edgeadapt.runtime.onnxruntime_backend import OnnxRuntimeBackend

NATIVE, ORT = "edgeadapt.runtime.native_backend", "edgeadapt.runtime.onnxruntime_backend"


def opened(tiny: Path, name: str = "auto", options: EngineOptions | None = None) -> Backend:
    bundle = open_bundle(tiny)
    weights = bundle.weights()
    return open_backend(name, bundle, weights, np.zeros_like(weights), options)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())


def test_auto_is_the_native_engine(tiny: Path) -> None:
    assert isinstance(opened(tiny), NativeBackend)


def test_auto_asks_for_a_gpu_only_where_there_is_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "has_gpu", lambda: True)
    monkeypatch.setitem(sys.modules, "edgeadapt.runtime.cuda_backend", None)
    with pytest.warns(EngineWarning, match=r"native is used, for cuda: .*cannot be loaded"):
        assert isinstance(opened(tiny), NativeBackend)
    monkeypatch.setattr(backends, "has_gpu", lambda: False)
    monkeypatch.setattr(backends, "_said", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(opened(tiny), NativeBackend)


def test_without_cuda_it_says_what_is_missing(tiny: Path) -> None:
    if backends.has_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"PyCUDA|cuda-bindings|CUDA cannot use a GPU|driver"):
        opened(tiny, "cuda")


def test_auto_falls_back_and_says_so_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NATIVE, None)
    with pytest.warns(EngineWarning, match=r"onnxruntime is used, for native: .*C\+\+ compiler"):
        assert isinstance(opened(tiny), OnnxRuntimeBackend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(opened(tiny), OnnxRuntimeBackend)


def test_auto_gives_every_reason_if_no_engine_can(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NATIVE, None)
    with pytest.raises(
        BackendError, match=r"no backend can run .* native: .* convolutions in bf16"
    ):
        opened(tiny, options=EngineOptions(precision="bf16"))
    monkeypatch.setitem(sys.modules, ORT, None)
    with pytest.raises(BackendError, match=r"cannot be loaded.*pip install onnxruntime"):
        opened(tiny)


def test_a_backend_that_is_not_there(tiny: Path) -> None:
    message = r"there is no backend 'tpu'.*use one of auto, cuda, native, onnxruntime"
    with pytest.raises(BackendError, match=message):
        opened(tiny, "tpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions(threads=0), "threads must be a whole number, at least 1, got 0"),
        (EngineOptions(memory_budget=0), "memory_budget must be a whole number, at least 1, got 0"),
        (EngineOptions(memory_budget=1.5), "got 1.5"),  # type: ignore[arg-type]
        (
            EngineOptions(precision="fp8"),
            "precision must be one of fp32, tf32, fp16, bf16, got 'fp8'",
        ),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range(tiny: Path, options: EngineOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tiny, options=options)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_the_native_engine_refuses_what_cpus_do_not_have(tiny: Path, precision: Precision) -> None:
    message = rf"computes in fp32 or bf16, not {precision}.*use the backend cuda"
    with pytest.raises(BackendError, match=message):
        opened(tiny, "native", EngineOptions(precision=precision))


def test_onnxruntime_refuses_what_it_cannot_do(tiny: Path) -> None:
    with pytest.raises(BackendError, match="no convolutions in bf16"):
        opened(tiny, "onnxruntime", EngineOptions(precision="bf16"))
    with pytest.raises(BackendError, match="cannot keep to a memory budget"):
        opened(tiny, "onnxruntime", EngineOptions(memory_budget=2**30))
