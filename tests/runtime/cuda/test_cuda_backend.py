"""The CUDA engine on a device of host memory, against the native engine and its own rules."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import ArrayError, BackendError
from edgeadapt.image import from_network, to_network
from edgeadapt.runtime import cuda_backend
from edgeadapt.runtime.backend import EngineOptions, Frame, Precision
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.native_backend import NativeBackend
from edgeadapt.runtime.optimizer import Adam, Sgd, flat_step_sizes
from edgeadapt.runtime.session import Session
from edgeadapt.testing import assert_gradient_close, photo
from support.exported import exported
from support.host_device import Faults, HostDevice

Array = npt.NDArray[Any]
MULTIPLE = 16

MIB = 2**20


def frame(bundle: Bundle, seed: int = 0, rows: int = 2, columns: int = 3) -> Frame:
    multiple = bundle.manifest.image.size_multiple
    shape = (1, 3, rows * multiple, columns * multiple)
    image = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    return Frame(image, np.full_like(image, np.nan))


class Opened:
    """A backend on weights near the bundle's own; gradients start as NaN."""

    def __init__(self, kind: Any, bundle: Bundle, precision: Precision = "fp32", **device: Any):
        self.bundle, own = bundle, bundle.weights()
        noise = np.random.default_rng(0).standard_normal(own.shape)
        self.weights = (own + 0.05 * np.abs(own).mean() * noise).astype(np.float32)
        self.gradients = np.full_like(own, np.nan)
        options = EngineOptions(1, precision)
        arguments = (bundle, self.weights, self.gradients, options)
        if kind is NativeBackend:
            self.engine: Any = NativeBackend(*arguments)
            return
        self.device = HostDevice(**device)
        self.engine = CudaBackend(*arguments, device=self.device)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


@pytest.mark.parametrize(
    "name",
    ["nano", "body: simple gates", "attention_over_pixels", "an activation is a Conv's weight"],
)
def test_every_graph_gives_what_the_native_engine_gives(name: str, tiny: Path) -> None:
    files = {"nano": "nano", "an activation is a Conv's weight": tiny}
    bundle = open_bundle(files[name]) if name in files else exported(name)
    found, expected = Opened(CudaBackend, bundle), Opened(NativeBackend, bundle)
    for scope in bundle.manifest.scopes:
        at, other = frame(bundle), frame(bundle)
        for opened in (found, expected):
            opened.gradients.fill(np.nan)
        loss = found.engine.gradients(scope.name, at)
        assert loss == pytest.approx(expected.engine.gradients(scope.name, other), rel=1e-5)
        assert_gradient_close(at.restored, other.restored, 1e-5)
        given = ~np.isnan(expected.gradients)
        assert (given == ~np.isnan(found.gradients)).all()  # the rest is left alone
        assert_gradient_close(found.gradients[given], expected.gradients[given], 1e-5)
    for method in ("restore", "restore_adapted", "loss"):
        at, other = frame(bundle, 1), frame(bundle, 1)
        results = [getattr(found.engine, method)(at), getattr(expected.engine, method)(other)]
        if method == "loss":
            assert results[0] == pytest.approx(results[1], rel=1e-5)
        assert_gradient_close(at.restored, other.restored, 1e-5)
    found.engine.close()


@pytest.mark.parametrize("kind", [Sgd, Adam])
def test_all_steps_at_once_are_the_steps_one_by_one(bundle: Bundle, kind: Any) -> None:
    sizes = flat_step_sizes(bundle, "heads", 1e-5)
    results = []
    for each, backend in ((False, CudaBackend), (True, CudaBackend), (True, NativeBackend)):
        opened, at = Opened(backend, bundle), frame(bundle)
        opened.gradients.fill(0.0)
        optimizer = kind(opened.weights, opened.gradients, sizes)
        evaluations = list(opened.engine.adapt("heads", at, optimizer, 3, each))
        assert [e.settled for e in evaluations] == [each, each, each, True]
        assert all(e.seconds > 0 for e in evaluations[:-1])
        losses = [e.loss for e in evaluations]
        results.append((losses, opened.weights.copy(), at.restored, opened.gradients.copy()))
    for one, other in zip(results[0][:3], results[1][:3], strict=True):
        np.testing.assert_array_equal(one, other)
    losses, weights, restored, gradients = results[2]
    np.testing.assert_allclose(results[0][0], losses, rtol=1e-6)
    moved = weights - Opened(NativeBackend, bundle).weights
    changed = results[0][1] - Opened(NativeBackend, bundle).weights
    # A step is about as large as float32 resolves a weight a hundred times.
    assert_gradient_close(changed, moved, 2e-3 if kind is Sgd else 2e-2)
    assert_gradient_close(results[1][3], gradients, 1e-3)
    assert_gradient_close(restored, results[0][2], 1e-5)


@pytest.mark.parametrize("kind", [Sgd, Adam])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_a_step_in_other_precisions_is_that_of_its_gradients(
    bundle: Bundle, precision: Precision, kind: Any
) -> None:
    opened, peer = Opened(CudaBackend, bundle, precision), Opened(NativeBackend, bundle)
    at, other, before = frame(bundle), frame(bundle), opened.weights.copy()
    sizes = flat_step_sizes(bundle, "heads", 1e-2)
    optimizer = kind(opened.weights, opened.gradients, sizes)
    loss = opened.engine.step("heads", at, optimizer)
    opened.gradients[np.isnan(opened.gradients)] = 0.0  # of parameters that do not move
    expected = before.copy()
    kind(expected, opened.gradients, sizes).step()
    assert_gradient_close(opened.weights - before, expected - before, 1e-4)
    assert loss == pytest.approx(peer.engine.gradients("heads", other), rel=1e-2)
    peer.gradients[np.isnan(peer.gradients)] = 0.0
    # The signs of values near zero differ.
    assert_gradient_close(opened.gradients, peer.gradients, 0.2)


def test_an_optimizer_goes_on_and_another_one_starts_anew(bundle: Bundle) -> None:
    opened, peer, at = Opened(CudaBackend, bundle), Opened(NativeBackend, bundle), frame(bundle)
    sizes = flat_step_sizes(bundle, "heads", 1e-4)
    for _ in range(2):
        own = Adam(opened.weights, opened.gradients, sizes)
        peer.gradients.fill(0.0)
        its = Adam(peer.weights, peer.gradients, sizes)
        for _ in range(2):
            opened.engine.step("heads", at, own)
            peer.engine.step("heads", at, its)
    assert_gradient_close(opened.weights, peer.weights, 1e-5)


def test_what_the_session_changes_is_seen(bundle: Bundle) -> None:
    opened, at = Opened(CudaBackend, bundle), frame(bundle)
    first = opened.engine.loss(at)
    opened.weights *= np.float32(0.5)
    assert opened.engine.loss(at) == first
    opened.engine.weights_changed()
    assert opened.engine.loss(at) != first


def test_an_adaptation_is_one_launch_and_allocates_nothing(bundle: Bundle) -> None:
    opened = Opened(CudaBackend, bundle)
    device, engine = opened.device, opened.engine
    at = engine.open_frame(*frame(bundle).image.shape[2:])
    sizes = flat_step_sizes(bundle, "heads", 1e-5)

    def adapt() -> None:
        at.put(photo(0, 13, 22), bundle.manifest.image.size_multiple)
        optimizer = Sgd(opened.weights, opened.gradients, sizes)
        engine.prepare("heads", at, optimizer)
        list(engine.adapt("heads", at, optimizer, 5, False))

    adapt()
    before = device.asked.copy()
    adapt()
    asked = device.asked - before
    assert asked["graph"] == 2  # all five steps, and the loss after them
    assert asked["synchronize"] <= 3  # the picture before, the end, and the time it took
    assert asked["allocate"] == asked["capture"] == asked["prepare"] == 0
    assert asked["launch"] == 1  # the picture's conversion
    assert device.ran["graph"] >= 4


def test_results_do_not_depend_on_the_order_of_blocks_or_on_when_things_run(bundle: Bundle) -> None:
    results = []
    for options in ({}, {"backward": True}, {"lazy": False}):
        opened, at = Opened(CudaBackend, bundle, **options), frame(bundle)
        opened.engine.gradients("heads", at)
        results.append((opened.gradients.copy(), at.restored))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("size", [(13, 22), (16, 24), (1, 1)])
def test_pictures_come_and_go_as_bytes(
    bundle: Bundle, size: tuple[int, int], unified: bool
) -> None:
    opened, multiple = Opened(CudaBackend, bundle, unified=unified), MULTIPLE
    picture = photo(1, 40, 40)[: size[0], : size[1]]
    padded = to_network(picture, multiple)
    at = opened.engine.open_frame(*padded.shape[2:])
    at.put(picture, multiple)
    other = Frame(padded, np.empty_like(padded))
    opened.engine.loss(at)
    assert at.is_finite()
    found = at.get(*size)
    Opened(CudaBackend, bundle).engine.loss(other)
    np.testing.assert_array_equal(found, from_network(other.restored, *size))
    opened.device.array(at.screen.restored, other.restored.shape, np.float32)[0, 0, 0, 0] = np.nan
    assert not at.is_finite()
    with pytest.raises(ArrayError, match=r"1 of \d+ values are not numbers"):
        at.get(*size)
    opened.device.array(at.screen.restored, other.restored.shape, np.float32)[0, 0, 0, 0] = np.inf
    assert not at.is_finite()


def session(monkeypatch: pytest.MonkeyPatch, **device: Any) -> tuple[Session, HostDevice]:
    made = HostDevice(**device)
    monkeypatch.setattr(cuda_backend, "_gpu", lambda: made)
    return Session("nano", backend="cuda"), made


def test_a_session_gives_what_it_gives_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo(0, 13, 22)
    (cuda, _), cpu = session(monkeypatch), Session("nano", backend="native")
    difference = cuda.restore(picture).astype(int) - cpu.restore(picture)
    assert np.abs(difference).max() <= 1
    found, expected = cuda.adapt(picture, 3, "heads"), cpu.adapt(picture, 3, "heads")
    assert not found.reverted
    assert len(found.step_seconds) == 3
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert_gradient_close(cuda.weights, cpu.weights, 1e-6)
    difference = cuda.restore(picture).astype(int) - cpu.restore(picture)
    assert np.abs(difference).max() <= 1
    kept = cuda.adapt(picture, 2, "heads", keep_steps=True)
    assert len(kept.restored_steps) == 3
    cuda.reset()
    again = cuda.adapt(picture, 3, "heads")
    assert again.losses == found.losses  # to the last bit
    cuda.close()


def test_what_a_session_has_to_take_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, _ = session(monkeypatch)
    picture, own = photo(0, 13, 22), cuda.bundle.weights()
    plain = cuda.restore(picture)
    done = cuda.adapt(picture, 2, "heads", step_size=1e30)
    assert "the loss is" in done.reverted
    np.testing.assert_array_equal(cuda.weights, own)
    np.testing.assert_array_equal(cuda.restore(picture), plain)
    first = cuda.adapt(picture, 1, "heads").losses
    cuda.reset()
    assert cuda.adapt(picture, 1, "heads").losses == first


def test_an_interrupted_adaptation_leaves_the_bundles_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, device = session(monkeypatch)
    picture = photo(0, 13, 22)
    losses = cuda.adapt(picture, 2, "heads").losses
    cuda.reset()
    wait = device.synchronize

    def interrupted() -> None:
        monkeypatch.setattr(device, "synchronize", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "synchronize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cuda.adapt(picture, 2, "heads")
    np.testing.assert_array_equal(cuda.weights, cuda.bundle.weights())
    assert cuda.adapt(picture, 2, "heads").losses == losses


def test_what_does_not_fit_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, device = session(monkeypatch, memory_bytes=24 * MIB)
    used, allocated = device.memory.used_bytes, device.asked["allocate"]
    message = r"256x512 needs \d+ MiB on the GPU, of which \d+ MiB are free.*images of up to (\d+)x"
    with pytest.raises(BackendError, match=message) as caught:
        cuda.adapt(photo(0, 512, 256), 1)
    assert device.memory.used_bytes - used < 4 * MIB  # the picture
    assert device.asked["allocate"] - allocated < 12
    words = str(caught.value).split("images of up to ")[1].split(" ")[0]
    width, height = (int(word) for word in words.split("x"))
    assert height < 512
    assert height * width > 64 * 64
    engine = cuda._engine
    assert isinstance(engine, CudaBackend)
    at = engine.open_frame(height, width)
    optimizer = Sgd(cuda._weights, cuda._gradients, flat_step_sizes(cuda.bundle, "all", 0.0))
    engine.prepare("all", at, optimizer)  # as it said


def test_a_device_that_fails_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo(0, 13, 22)
    cuda, _ = session(monkeypatch, faults=Faults(lost_at=40))
    with pytest.raises(BackendError, match=r"does not answer any more.*other backends work"):
        cuda.adapt(picture, 2, "heads")
    with pytest.raises(BackendError, match="does not answer any more"):
        cuda.restore(picture)
    cuda.close()
    with Session("nano", backend="native") as cpu:
        cpu.restore(picture)


def test_an_unsupported_device_and_a_full_one_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, _ = session(monkeypatch, faults=Faults(unsupported=True))
    with pytest.raises(BackendError, match="no CUDA kernel"):
        cuda.restore(photo(0, 13, 22))
    with pytest.raises(BackendError, match="device memory were asked for"):
        session(monkeypatch, faults=Faults(full_at=2))


def test_two_sessions_in_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [photo(0, 13, 22), photo(1, 9, 16)]
    expected, found = [], [np.zeros(0)] * 2
    for picture in pictures:
        one, _ = session(monkeypatch)
        expected.append(one.restore(picture))
    sessions = [session(monkeypatch)[0] for _ in range(2)]

    def restore(number: int) -> None:
        for _ in range(2):
            found[number] = sessions[number].restore(pictures[number])

    threads = [Thread(target=restore, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sizes_change_and_memory_does_not_leak(bundle: Bundle) -> None:
    opened = Opened(CudaBackend, bundle)
    used = []
    for rows in (3, 1, 2, 3, 1, 2):
        at = opened.engine.open_frame(rows * MULTIPLE, MULTIPLE)
        at.put(photo(0, rows * MULTIPLE, MULTIPLE), MULTIPLE)
        opened.engine.loss(at)
        used.append(opened.device.memory.used_bytes)
    assert used[3:] == used[:1] + used[4:]
    assert used[3] == used[0]
    opened.engine.close()
    assert opened.device.memory.used_bytes == 0
