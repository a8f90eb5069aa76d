from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime import onnxruntime_backend, onnxruntime_providers
from edgeadapt.runtime.backend import EngineOptions, Frame, Precision
from edgeadapt.runtime.onnxruntime_backend import (
    OnnxRuntimeBackend,
    OnnxRuntimeCudaBackend,
    OnnxRuntimeTensorrtBackend,
)
from edgeadapt.runtime.onnxruntime_memory import DeviceMemory
from edgeadapt.runtime.onnxruntime_providers import Asked
from edgeadapt.runtime.optimizer import make_optimizer
from support.fake_onnxruntime import FakeOnnxRuntime
from support.gpu_code import library_for
from support.recorded_machine import Recording, bare, orin, server
from support.tiny_bundle import SCOPES, SHAPES, evaluate, random_parameters

TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}  # as on the CPU
WHEEL = ("75", "80", "86", "89", "90a", "120a")  # what the wheel of 1.31.1 for x86-64 holds
PROVIDERS = "site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"


class Opened:
    """A backend for a GPU on a recorded machine, on weights that are not the bundle's."""

    def __init__(
        self,
        folder: Path,
        backend: type[OnnxRuntimeBackend] = OnnxRuntimeCudaBackend,
        precision: Precision = "fp32",
    ) -> None:
        self.bundle = open_bundle(folder)
        self.offsets = self.bundle.offsets()
        self.parameters = random_parameters(seed=5)
        self.weights = np.empty_like(self.bundle.weights())
        for name, part in self.offsets.items():
            self.weights[part] = self.parameters[name].ravel()
        self.gradients = np.full_like(self.weights, np.nan)
        options = EngineOptions(1, precision)
        self.backend = backend(self.bundle, self.weights, self.gradients, options)


Machine = Callable[..., FakeOnnxRuntime]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Puts a machine in the place of this one, with a library that holds code for some GPUs."""

    def make(
        made: Callable[[Path], Recording] = server, code: tuple[str, ...] = WHEEL
    ) -> FakeOnnxRuntime:
        recording = made(tmp_path)
        recording.file(PROVIDERS, library_for(*code))
        system = recording.machine_for().system
        library = FakeOnnxRuntime(tmp_path / "site-packages/onnxruntime")
        monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(onnxruntime_providers, "System", lambda: system)
        monkeypatch.setattr(onnxruntime_backend, "onnxruntime", library)
        return library

    return make


def frame(height: int = 8, width: int = 20, seed: int = 0) -> Frame:
    image = np.random.default_rng(seed).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    return Frame(image, np.full_like(image, np.nan))


@pytest.mark.parametrize("backend", [OnnxRuntimeCudaBackend, OnnxRuntimeTensorrtBackend])
@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_what_is_computed_there_lands_here(
    tiny: Path, machine: Machine, scope: str, backend: type[OnnxRuntimeBackend]
) -> None:
    machine()
    opened, at = Opened(tiny, backend), frame()
    loss = opened.backend.gradients(scope, at)
    expected = evaluate(opened.parameters, at.image)
    assert math.isclose(loss, expected.loss, rel_tol=1e-5)
    np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)
    for name in SHAPES:
        found = opened.gradients[opened.offsets[name]].reshape(SHAPES[name])
        if name in SCOPES[scope]:
            np.testing.assert_allclose(found, expected.gradients[name], **TOLERANCE)
        else:
            assert np.isnan(found).all()


def test_steps_follow_the_cpu_to_the_bit(tiny: Path, machine: Machine) -> None:
    def adapted(backend: type[OnnxRuntimeBackend]) -> tuple[list[float], np.ndarray, np.ndarray]:
        opened, at = Opened(tiny, backend), frame()
        optimizer = make_optimizer(opened.bundle, opened.weights, opened.gradients, "all", None)
        opened.backend.prepare("all", at, optimizer)
        found = [one.loss for one in opened.backend.adapt("all", at, optimizer, 3, True)]
        opened.backend.restore_adapted(at)
        return found, opened.weights, at.restored

    here = adapted(OnnxRuntimeBackend)
    machine()
    there = adapted(OnnxRuntimeCudaBackend)
    assert len(set(here[0])) == 4
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frames_of_several_sizes_take_turns(tiny: Path, machine: Machine) -> None:
    library = machine()
    opened = Opened(tiny)
    frames = [frame(8, 20), frame(4, 4), frame(8, 20, seed=1)]
    for at in [*frames, *reversed(frames)]:
        at.restored.fill(np.nan)
        opened.backend.loss(at)
        expected = evaluate(opened.parameters, at.image)
        np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)
    assert len(library.values) == 3 + 2 * len(frames)  # weights, gradients, the loss; the frames


def test_a_step_costs_one_copy_of_weights_and_one_of_gradients(
    tiny: Path, machine: Machine
) -> None:
    library = machine()
    opened, at = Opened(tiny), frame()
    for _ in range(2):
        opened.backend.gradients("all", at)
    weights, gradients, loss, image, restored = library.values
    assert [weights.copies_in, gradients.copies_in, image.copies_in] == [2, 0, 2]
    assert [gradients.copies_out, loss.copies_out, restored.copies_out] == [2, 2, 2]
    opened.backend.restore(at)
    assert weights.copies_in == 2  # the bundle's own are in the graph


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bits_are_written_into_what_is_opened(
    tiny: Path, machine: Machine, precision: Precision
) -> None:
    library = machine()
    opened = Opened(tiny, precision=precision)
    if precision == "bf16":  # the real library below is the CPU's
        with pytest.raises(BackendError, match=r"cannot open .*loss\.onnx.*Conv"):
            opened.backend.loss(frame())
        return
    at = frame()
    loss = opened.backend.loss(at)
    assert isinstance(library.sessions[0].source, bytes)
    expected = evaluate(opened.parameters, at.image)
    assert 0 < abs(loss - expected.loss) < 2.0**-10 * expected.loss
    assert 0 < np.abs(at.restored - expected.restored).max() < 2.0**-8


def options_of(library: FakeOnnxRuntime) -> dict[str, dict[str, str]]:
    return dict(library.sessions[0].asked)


def test_what_the_cuda_provider_is_asked_for(tiny: Path, machine: Machine) -> None:
    library = machine()
    Opened(tiny).backend.loss(frame())
    found = options_of(library)
    assert list(found) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert found["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert "enable_cuda_graph" not in found["CUDAExecutionProvider"]
    assert library.runs == [{}]


def test_tf32_is_the_providers_own(tiny: Path, machine: Machine) -> None:
    library = machine()
    Opened(tiny, precision="tf32").backend.loss(frame())
    assert options_of(library)["CUDAExecutionProvider"]["use_tf32"] == "1"


def test_tensorrt_keeps_engines_by_what_they_depend_on(
    tiny: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = machine()
    folders = set()
    for precision, version in itertools.product(("fp32", "fp16"), ("1.31.1", "1.31.2")):
        monkeypatch.setattr(library, "__version__", version)
        library.sessions.clear()
        Opened(tiny, OnnxRuntimeTensorrtBackend, precision).backend.loss(frame())
        found = options_of(library)
        assert list(found)[:2] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        options = found["TensorrtExecutionProvider"]
        assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
        assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"]
        assert Path(options["trt_engine_cache_path"]).is_dir()
        # Each of these would make the network weakly typed, and the casts suggestions.
        assert not [name for name in options if "fp16" in name or "bf16" in name or "int8" in name]
        folders.add(options["trt_engine_cache_path"])
    assert len(folders) == 4


def test_a_cuda_graph_is_asked_for_once_for_each_way_and_frame(
    tiny: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEADAPT_ORT_CUDA_GRAPH", "1")
    library = machine()
    opened, first, second = Opened(tiny), frame(), frame(4, 8)
    for at in (first, first, second):
        opened.backend.loss(at)
    opened.backend.gradients("all", second)
    assert options_of(library)["CUDAExecutionProvider"]["enable_cuda_graph"] == "1"
    numbers = [run["gpu_graph_id"] for run in library.runs]
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 3


def test_what_a_caller_may_ask_of_both(tiny: Path, machine: Machine) -> None:
    library, opened, options = machine(), Opened(tiny), EngineOptions(1)
    streamed = OnnxRuntimeCudaBackend(
        opened.bundle, opened.weights, opened.gradients, options, stream=0x7F00
    )
    streamed.loss(frame())
    cuda = options_of(library)["CUDAExecutionProvider"]
    assert cuda["user_compute_stream"] == "32512"
    assert cuda["has_user_compute_stream"] == "1"
    asked = Asked("tensorrt", "fp16", "/cache", stream=5, cuda_graph=True)
    found = dict(asked.providers())
    assert found["TensorrtExecutionProvider"]["trt_cuda_graph_enable"] == "1"
    # What is between engines goes on the same stream, and records no graph of its own.
    assert found["CUDAExecutionProvider"]["user_compute_stream"] == "5"
    assert "enable_cuda_graph" not in found["CUDAExecutionProvider"]
    assert Asked("cpu", "fp16").providers() == [("CPUExecutionProvider", {})]


def test_a_library_without_the_provider_is_refused(tiny: Path, machine: Machine) -> None:
    machine().providers = ["CPUExecutionProvider"]
    message = r"without CUDAExecutionProvider \(it has CPUExec.*pip install onnxruntime-gpu"
    with pytest.raises(BackendError, match=message):
        Opened(tiny)


def test_a_machine_without_a_gpu_is_refused(tiny: Path, machine: Machine) -> None:
    machine(bare)
    with pytest.raises(BackendError, match=r"finds no NVIDIA GPU.*edgeadapt doctor"):
        Opened(tiny)


@pytest.mark.parametrize("backend", [OnnxRuntimeCudaBackend, OnnxRuntimeTensorrtBackend])
def test_the_wheel_for_servers_is_refused_on_a_jetson(
    tiny: Path, machine: Machine, backend: type[OnnxRuntimeBackend]
) -> None:
    # What the wheel of 1.31.1 for aarch64 holds: it opens on Orin, and fails at the first kernel.
    machine(orin, ("89", "90a", "120a", "121a"))
    message = (
        r"libonnxruntime_providers_cuda\.so has no code for this GPU, NVIDIA Jetson Orin Nano .*"
        r"\(sm_87\): it holds sm_89, .*CMAKE_CUDA_ARCHITECTURES=87, or use the backend onnxruntime"
    )
    with pytest.raises(BackendError, match=message):
        Opened(tiny, backend)


@pytest.mark.parametrize("code", [("80",), ("80", "86")])
def test_code_for_other_gpus_of_the_generation_is_not_enough_on_a_jetson(
    tiny: Path, machine: Machine, code: tuple[str, ...]
) -> None:
    machine(orin, code)
    with pytest.raises(BackendError, match=r"no code for this GPU"):
        Opened(tiny)


@pytest.mark.parametrize("code", [("87",), ("ptx80",)])
def test_a_build_for_the_jetson_is_taken(
    tiny: Path, machine: Machine, code: tuple[str, ...]
) -> None:
    machine(orin, code)
    assert Opened(tiny).backend.loss(frame()) > 0


def test_a_tensorrt_for_other_gpus_is_refused(tiny: Path, machine: Machine, tmp_path: Path) -> None:
    machine(orin, ("87",))
    (file,) = tmp_path.glob("usr/lib/*/libnvinfer.so.10.16.2")
    file.write_bytes(library_for("90", "110"))
    assert Opened(tiny).backend.loss(frame()) > 0
    with pytest.raises(BackendError, match=r"libnvinfer\.so\.10\.16\.2 has no code .*JetPack"):
        Opened(tiny, OnnxRuntimeTensorrtBackend)


def test_a_library_that_is_not_there_is_named(tiny: Path, machine: Machine, tmp_path: Path) -> None:
    machine()
    (tmp_path / PROVIDERS).unlink()
    with pytest.raises(BackendError, match=r"libonnxruntime_providers_cuda\.so cannot be read"):
        Opened(tiny)


def test_a_provider_that_did_not_load_is_not_the_cpu_in_silence(
    tiny: Path, machine: Machine
) -> None:
    machine().not_loading = {"TensorrtExecutionProvider"}
    assert Opened(tiny).backend.loss(frame()) > 0
    opened = Opened(tiny, OnnxRuntimeTensorrtBackend)
    message = r"could not load its TensorrtExecutionProvider and went on with CUDAExecutionProvider"
    with pytest.raises(BackendError, match=message):
        opened.backend.loss(frame())


def test_a_kernel_that_fails_is_one_error(tiny: Path, machine: Machine) -> None:
    library = machine()
    opened = Opened(tiny)
    library.failure = "CUDA error 209:\nno kernel image is available for execution on the device"
    with pytest.raises(BackendError, match=r"image of 20x8 \(CUDA error 209: no kernel") as caught:
        opened.backend.loss(frame())
    assert "\n" not in str(caught.value)


def test_the_same_memory_with_the_real_library(tiny: Path) -> None:
    """All of the above through a stand-in; here through ONNX Runtime's own values, on the CPU."""
    opened = Opened(tiny, OnnxRuntimeBackend)
    backend = opened.backend
    backend._memory = DeviceMemory(
        opened.bundle, opened.weights, opened.gradients, onnxruntime, "cpu"
    )
    at = frame()
    loss = backend.gradients("bias", at)
    expected = evaluate(opened.parameters, at.image)
    assert math.isclose(loss, expected.loss, rel_tol=1e-5)
    np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)
    for name in SCOPES["bias"]:
        found = opened.gradients[opened.offsets[name]].reshape(SHAPES[name])
        np.testing.assert_allclose(found, expected.gradients[name], **TOLERANCE)
    opened.weights *= np.float32(0.5)
    halved = {name: value * np.float32(0.5) for name, value in opened.parameters.items()}
    assert math.isclose(backend.loss(at), evaluate(halved, at.image).loss, rel_tol=1e-5)
