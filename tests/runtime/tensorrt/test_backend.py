"""The backend on a device of host memory and a TensorRT that ONNX Runtime stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, EngineWarning
from edgeadapt.runtime import tensorrt_backend
from edgeadapt.runtime.backend import EngineOptions, Frame, Precision
from edgeadapt.runtime.cuda import pycuda_device
from edgeadapt.runtime.cuda.device import ALIGNMENT
from edgeadapt.runtime.native_backend import NativeBackend
from edgeadapt.runtime.optimizer import Sgd, flat_step_sizes
from edgeadapt.runtime.session import Session
from edgeadapt.runtime.tensorrt.build import Request, build_engine
from edgeadapt.runtime.tensorrt.engine_file import write_engine
from edgeadapt.runtime.tensorrt.library import Library
from edgeadapt.runtime.tensorrt.models import Weights
from edgeadapt.runtime.tensorrt_backend import TensorrtBackend
from edgeadapt.testing import assert_gradient_close, photo
from support.fake_tensorrt import Fake, array_at
from support.host_device import ORIN, HostDevice

Array = npt.NDArray[Any]
SIZE = (32, 48)


def frame(seed: int = 0, size: tuple[int, int] = SIZE) -> Frame:
    image = np.random.default_rng(seed).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    return Frame(image, np.full_like(image, np.nan))


class Opened:
    """A backend on weights near the bundle's own."""

    def __init__(self, bundle: Bundle, fake: Fake | None, **options: Any) -> None:
        own = bundle.weights()
        noise = np.random.default_rng(0).standard_normal(own.shape)
        self.weights = (own + 0.05 * np.abs(own).mean() * noise).astype(np.float32)
        self.gradients = np.zeros_like(own)
        arguments = (bundle, self.weights, self.gradients, EngineOptions(**options))
        if fake is None:
            self.engine: Any = NativeBackend(*arguments)
            return
        self.device = HostDevice()
        library = Library("tensorrt", fake)
        self.engine = TensorrtBackend(*arguments, device=self.device, library=library)


def engine_file(
    bundle: Bundle, fake: Fake, path: Path, weights: Weights, precision: Precision = "fp32"
) -> str:
    library, device = Library("tensorrt", fake), HostDevice()
    request = Request(SIZE, precision, weights)
    engine = build_engine(bundle, request, library, device.info.capability, device)
    write_engine(path, engine.header, engine.plan)
    return str(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_it_restores_as_the_native_engine_does(bundle: Bundle, precision: Precision) -> None:
    fake = Fake()
    found, expected = Opened(bundle, fake, precision=precision), Opened(bundle, None)
    found.engine.open_frame(*SIZE)
    bound = 1e-5 if precision == "fp32" else 1e-2  # of 10 bits, through some sixty convolutions
    for seed, method in enumerate(["restore", "restore_adapted", "restore", "restore_adapted"]):
        at, other = frame(seed), frame(seed)
        getattr(found.engine, method)(at)
        getattr(expected.engine, method)(other)
        assert_gradient_close(at.restored, other.restored, bound)
    assert fake.ran == ["run"] * 4
    assert fake.complaints == []
    found.engine.close()
    assert fake.opened == 0


@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_every_address_is_aligned_and_holds_what_the_flat_array_holds(bundle: Bundle) -> None:
    fake = Fake()
    opened = Opened(bundle, fake)
    opened.engine.open_frame(*SIZE)
    opened.engine.restore_adapted(frame())
    (addresses,) = fake.bound
    rows = {row.name: row for row in bundle.manifest.parameters}
    assert len(addresses) == 2 + len(set(addresses) & set(rows))
    assert {"image", "restored"} <= set(addresses)
    offsets = bundle.offsets()
    assert any(4 * at.start % ALIGNMENT for at in offsets.values()), "else nothing is tested"
    for name, address in addresses.items():
        assert address % ALIGNMENT == 0
        if name in rows:
            expected = opened.weights[offsets[name]].reshape(rows[name].shape)
            np.testing.assert_array_equal(array_at(address, rows[name].shape), expected)
    opened.engine.close()


@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_steps_on_the_device_are_seen_by_the_engine_without_a_build(bundle: Bundle) -> None:
    fake = Fake()
    found, expected = Opened(bundle, fake), Opened(bundle, None)
    sizes = flat_step_sizes(bundle, "heads", 1e-3)
    restored = []
    for opened in (found, expected):
        at = frame()
        opened.engine.open_frame(*SIZE)
        opened.engine.restore_adapted(at)
        first = at.restored.copy()
        optimizer = Sgd(opened.weights, opened.gradients, sizes)
        list(opened.engine.adapt("heads", at, optimizer, 2, each=False))
        at.restored.fill(np.nan)
        opened.engine.restore_adapted(at)
        restored.append(at.restored - first)
        opened.engine.step("heads", at, optimizer)
        opened.engine.restore_adapted(at)
        restored.append(at.restored - first)
    assert_gradient_close(restored[0], restored[2], 1e-3)
    assert_gradient_close(restored[1], restored[3], 1e-3)
    assert np.abs(restored[0]).max() > 1e-4, "the steps changed nothing"
    assert len(fake.built) == 1
    found.engine.close()


@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_weights_are_copied_when_they_changed_and_no_more(bundle: Bundle) -> None:
    opened = Opened(bundle, Fake())
    opened.engine.open_frame(*SIZE)
    copies = []
    for change in (False, False, True, False):
        if change:
            opened.weights *= np.float32(0.5)
            opened.engine.weights_changed()
        before = opened.device.ran["copy"]
        opened.engine.restore_adapted(frame())
        copies.append(opened.device.ran["copy"] - before)
    taken = len(opened.engine._bound._parameters)
    assert copies == [taken, 0, taken, 0]
    opened.engine.close()


@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_from_the_second_run_on_it_is_a_recorded_graph(bundle: Bundle) -> None:
    fake = Fake()
    opened = Opened(bundle, fake)
    opened.engine.open_frame(*SIZE)
    calls = []
    for _ in range(4):
        with opened.device.frozen():  # nothing is allocated after the frame is open
            opened.engine.restore(frame())
        calls.append(opened.device.asked["call"])
    assert calls == [1, 2, 2, 2]  # run, recorded, replayed twice more
    assert fake.ran == ["run"] * 4
    opened.engine.close()


def test_weights_are_exchanged_on_the_device_where_the_engine_holds_them(
    bundle: Bundle, tmp_path: Path
) -> None:
    fake = Fake()
    file = engine_file(bundle, fake, tmp_path / "x.engine", "refit")
    found, expected = Opened(bundle, fake, engine=file), Opened(bundle, None)
    found.engine.open_frame(*SIZE)
    for seed, method in enumerate(["restore", "restore_adapted", "restore_adapted", "restore"]):
        at, other = frame(seed), frame(seed)
        getattr(found.engine, method)(at)
        getattr(expected.engine, method)(other)
        assert_gradient_close(at.restored, other.restored, 1e-5)
    assert fake.ran == ["refit", "run", "refit", "run", "run", "refit", "run"]
    assert fake.complaints == []
    found.engine.close()


def test_constant_weights_restore_and_refuse_to_adapt(bundle: Bundle, tmp_path: Path) -> None:
    fake = Fake()
    file = engine_file(bundle, fake, tmp_path / "x.engine", "constant")
    found, expected = Opened(bundle, fake, engine=file), Opened(bundle, None)
    at, other = found.engine.open_frame(*SIZE), frame()
    at = frame()
    found.engine.restore(at)
    expected.engine.restore(other)
    assert_gradient_close(at.restored, other.restored, 1e-5)
    assert set(fake.bound[0]) == {"image", "restored"}
    optimizer = Sgd(found.weights, found.gradients, flat_step_sizes(bundle, "heads", 1e-3))
    before = found.weights.copy()
    with pytest.raises(BackendError, match=r"cannot adapt: its weights are constant.*--weights in"):
        found.engine.prepare("heads", at, optimizer)
    with pytest.raises(BackendError, match="cannot restore with adapted weights"):
        found.engine.restore_adapted(at)
    np.testing.assert_array_equal(found.weights, before)
    assert found.engine.loss(at) > 0  # the CUDA engine's: K = 0 has one
    found.engine.close()


def test_a_wrong_engine_is_refused_before_a_gpu_is_looked_for(
    bundle: Bundle, tmp_path: Path
) -> None:
    weights = bundle.weights()
    for path, message in [(tmp_path / "x.engine", "no such engine"), (tmp_path, "cannot be read")]:
        with pytest.raises(BackendError, match=message):
            TensorrtBackend(bundle, weights, weights, EngineOptions(engine=str(path)))


@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_steps_can_be_profiled_and_the_inside_of_an_engine_cannot(bundle: Bundle) -> None:
    opened = Opened(bundle, Fake())
    at = opened.engine.open_frame(*SIZE)
    optimizer = Sgd(opened.weights, opened.gradients, flat_step_sizes(bundle, "heads", 1e-3))
    assert opened.engine.step_profiler("heads", at, optimizer) is not None
    with pytest.raises(BackendError, match=r"time of an engine's operations.*--backend cuda does"):
        opened.engine.restore_profiler(at)
    opened.engine.close()


def test_an_engine_is_built_once_for_each_size_and_that_is_said(bundle: Bundle) -> None:
    fake = Fake()
    opened = Opened(bundle, fake)
    with pytest.warns(EngineWarning, match=r"TensorRT 10\.3\.0\.30 builds an engine for 48x32"):
        opened.engine.open_frame(*SIZE)
    opened.engine.restore(frame())
    with pytest.warns(EngineWarning, match="64x16"):
        opened.engine.open_frame(16, 64)
    assert fake.opened == 1  # that of the other size is closed
    other = frame(1, (16, 64))
    opened.engine.restore(other)
    assert np.isfinite(other.restored).all()
    opened.engine.open_frame(*SIZE)  # from the cache, and nothing is said
    assert len(fake.built) == 2
    opened.engine.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("parse", r"ONNX parser of TensorRT 10\.3.* refuses the graph \(no such operator\)"),
        ("build", r"TensorRT 10\.3.* builds no engine \(cannot build\)"),
        ("open", r"does not open the engine \(cannot open\)"),
        ("bind", r"does not take an address for 'image' \(cannot bind\)"),
        ("run", r"does not run the engine \(cannot run\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_what_the_library_refuses_is_said(bundle: Bundle, fault: str, message: str) -> None:
    fake = Fake()
    fake.faults.add(fault)
    opened = Opened(bundle, fake)

    def use() -> None:
        opened.engine.open_frame(*SIZE)
        opened.engine.restore(frame())

    with pytest.raises(BackendError, match=message):
        use()
    used = opened.device.memory.used_bytes
    with pytest.raises(BackendError, match=message):
        use()
    assert opened.device.memory.used_bytes == used, "a failure costs memory each time"
    opened.engine.close()
    assert fake.opened == 0


def test_an_engine_of_other_weights_than_parameters_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    fake = Fake()
    file = engine_file(bundle, fake, tmp_path / "x.engine", "refit")
    fake.faults.add("refit")
    opened = Opened(bundle, fake, engine=file)
    with pytest.raises(BackendError, match="wants weights that are no parameters: 'another'"):
        opened.engine.open_frame(*SIZE)
    opened.engine.close()


@pytest.mark.filterwarnings("ignore::edgeadapt.errors.EngineWarning")
def test_what_tensorrt_rtx_compiles_is_kept_for_the_next_time(bundle: Bundle) -> None:
    rtx = ORIN.__class__("RTX", (8, 6), ORIN.memory_bytes, 28, False, ORIN.driver)
    loaded = []
    for _ in range(2):
        fake = Fake("rtx")
        weights = bundle.weights()
        engine = TensorrtBackend(
            bundle,
            weights,
            np.zeros_like(weights),
            EngineOptions(),
            device=HostDevice(info=rtx),
            library=Library("tensorrt-rtx", fake),
        )
        engine.open_frame(*SIZE)
        engine.restore(frame())
        engine.close()
        loaded.append(fake.kernels_loaded)
        assert fake.complaints == []
    assert loaded == [[], [b"kernels"]]


def test_a_session_adapts_and_restores_through_a_file(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    monkeypatch.setenv("EDGEADAPT_CUDNN", "off")
    monkeypatch.setattr(pycuda_device, "open_device", HostDevice)
    monkeypatch.setattr(tensorrt_backend, "find_library", lambda: Library("tensorrt", fake))
    file = engine_file(bundle, fake, tmp_path / "x.engine", "inputs")
    picture = photo(0, 30, 45)  # padded to `SIZE`
    images = []
    for options in ({"backend": "tensorrt", "engine": file}, {"backend": "native"}):
        with Session(bundle, **options) as session:  # type: ignore[arg-type]
            before = session.restore(picture)
            adaptation = session.adapt(picture, steps=2, scope="heads", step_size=1e-3)
            images.append((before, session.restore(picture), adaptation.losses))
    (before, after, losses), (expected_before, expected_after, expected_losses) = images
    assert (before != after).any(), "the steps changed nothing"
    # Values that lie between two grey levels may go either way.
    assert np.abs(before.astype(int) - expected_before).max() <= 1
    assert np.abs(after.astype(int) - expected_after).max() <= 1
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert (fake.ran, fake.complaints) == (["run", "run"], [])
    wrong_size = r"images 32 pixels high, not 64.*--size 48x64"
    with (
        Session(bundle, "tensorrt", engine=file) as session,
        pytest.raises(BackendError, match=wrong_size),
    ):
        session.restore(photo(0, 50, 40))
