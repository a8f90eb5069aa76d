"""The CUDA engine on a real GPU: what the host, which runs its kernels otherwise, cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.benchmarks.cuda_peers import CountedDevice, CudaPeer
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime import cuda_backend
from edgeadapt.runtime.backend import PRECISIONS, EngineOptions, Frame, Precision
from edgeadapt.runtime.cuda.calls import OWN, packed_elements, scratch_asker
from edgeadapt.runtime.cuda.plan import Target, compile_graph
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.read import read
from edgeadapt.runtime.session import Session
from edgeadapt.testing import compare_gradients, photo
from support import interpret
from support.cuda_steps import Steps
from support.exported import exported

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
MIB = 2**20
# Of float64, relative L2 of all gradients as one vector. bfloat16 keeps 8 bits, three less than
# float16 and tf32.
BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


def image_of(bundle: Bundle, rows: int = 4, columns: int = 6) -> Array:
    multiple = bundle.manifest.image.size_multiple
    shape = (1, 3, rows * multiple, columns * multiple)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def gradients_of(
    bundle: Bundle, weights: Array, image: Array, precision: Precision, gpu: Any
) -> Array:
    flat = np.zeros_like(weights)
    engine = CudaBackend(bundle, weights, flat, EngineOptions(1, precision), gpu)
    engine.gradients("all", Frame(image, np.empty_like(image)))
    return flat


def float64_of(bundle: Bundle, weights: Array, image: Array) -> Array:
    program = fuse(read(bundle, bundle.scope("all").graph, *image.shape[2:]))
    found = interpret.run(program, image, bundle.named(weights))
    flat = np.zeros(weights.shape)
    for name, at in bundle.offsets().items():
        flat[at] = found[GRADIENT_PREFIX + name].reshape(-1)
    return flat


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_of_a_smooth_network_are_those_of_float64(gpu, precision: Precision) -> None:
    # Without a sign that rounding could turn.
    bundle = exported("body: simple gates")
    weights, image = bundle.weights(), image_of(bundle)
    found = gradients_of(bundle, weights, image, precision, gpu)
    report = compare_gradients(found, float64_of(bundle, weights, image))
    assert report.relative_l2 <= BOUNDS[precision], report
    assert precision == "fp32" or report.relative_l2 > 1e-6  # it was in fewer bits


def test_gradients_of_the_network_that_ships_are_those_of_float64(gpu, bundle: Bundle) -> None:
    rng, own = np.random.default_rng(0), bundle.weights()
    weights = (own + 0.05 * np.abs(own).mean() * rng.standard_normal(own.shape)).astype(np.float32)
    image = image_of(bundle)
    found = gradients_of(bundle, weights, image, "fp32", gpu)
    report = compare_gradients(found, float64_of(bundle, weights, image))
    assert report.relative_l2 <= BOUNDS["fp32"], report


class Readable:
    """A GPU whose memory can be looked at, as `Steps` does."""

    def __init__(self, gpu: Any) -> None:
        self._gpu = gpu
        self.memory = SimpleNamespace(check_guards=lambda what: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        found = np.empty(shape, dtype)
        self._gpu.download(found, address)
        self._gpu.synchronize()
        return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_operation_gives_what_float64_makes_of_its_operands(
    gpu, bundle: Bundle, precision: Precision
) -> None:
    image = image_of(bundle, 2, 3)
    target = Target(packed_elements, scratch_asker(OWN), precision)
    plan = compile_graph(bundle, bundle.scope("all").graph, *image.shape[2:], target)
    rng, own = np.random.default_rng(0), bundle.weights()
    weights = own + 0.1 * np.abs(own).mean() * rng.standard_normal(own.shape)
    worst = Steps(plan, OWN, image, weights.astype(np.float32), Readable(gpu)).check()
    assert {"conv", "conv_weight_grad", "resize", "resize_grad", "l1_loss"} <= set(worst)


def psnr(image: Array, other: Array) -> float:
    error = np.mean((image.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.fixture
def opened(gpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Session]]:
    """Sessions to be closed; gives the list."""
    made: list[Session] = []
    yield made
    for session in made:
        session.close()


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.01), ("tf32", 0.05), ("fp16", 0.05)])
def test_five_steps_restore_what_the_cpu_restores(
    opened: list[Session], precision: Precision, bound: float
) -> None:
    sharp = photo(0, 240, 336)
    blurred = (sharp // 2 + np.roll(sharp, 2, 1) // 2).astype(np.uint8)
    found = []
    for backend, kind in (("native", "fp32"), ("cuda", precision)):
        opened.append(Session("nano", backend, precision=kind))  # type: ignore[arg-type]
        assert not opened[-1].adapt(blurred, 5).reverted
        found.append(psnr(opened[-1].restore(blurred), sharp))
    assert abs(found[1] - found[0]) <= bound


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ten_runs_give_the_same_bits(opened: list[Session], precision: Precision) -> None:
    picture = photo(1, 240, 336)
    opened.append(Session("nano", "cuda", precision=precision))
    first = None
    for _ in range(10):
        opened[0].reset()
        losses = opened[0].adapt(picture, 3).losses
        found = (losses, opened[0].weights.tobytes(), opened[0].restore(picture).tobytes())
        first = first or found
        assert found == first


class CountedGraphs(CountedDevice):
    """A device that counts the graphs that are launched on it."""

    launched = 0

    def capture(self, work: Any) -> Any:
        graph = self._device.capture(work)
        launch = graph.launch

        def counted() -> None:
            self.launched += 1
            launch()

        return SimpleNamespace(launch=counted, close=graph.close)


def test_an_adaptation_is_one_launch_and_takes_the_cpu_little_time(gpu, bundle: Bundle) -> None:
    device = CountedGraphs(gpu)
    peer = CudaPeer(bundle, photo(0, 240, 336), "all", 5, "fp16", device)
    peer.seconds("adapt")
    taken, before = [], device.launched
    for _ in range(20):
        peer.seconds("adapt")
        taken.append(peer.cpu_seconds)
    assert device.launched - before == 2 * 20  # the steps, and the loss after them
    assert median(taken) < 2e-4, f"{1e3 * median(taken):.3f} ms"


def test_two_sessions_in_two_threads(opened: list[Session]) -> None:
    pictures = [photo(seed, 120, 168) for seed in range(2)]
    expected = []
    for picture in pictures:
        opened.append(Session("nano", "cuda"))
        expected.append((opened[-1].adapt(picture, 3).losses, opened[-1].restore(picture)))
    found: dict[int, list[Any]] = {0: [], 1: []}
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                opened[number].reset()
                losses = opened[number].adapt(pictures[number], 3).losses
                found[number].append((losses, opened[number].restore(pictures[number])))
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for number, runs in found.items():
        for losses, restored in runs:
            assert losses == expected[number][0]
            np.testing.assert_array_equal(restored, expected[number][1])


class Small(CountedDevice):
    """A device of which others have left little."""

    def free_bytes(self) -> int:
        return 24 * MIB


def test_what_does_not_fit_is_refused_and_a_smaller_image_goes(
    gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Small(gpu)
    monkeypatch.setattr(cuda_backend, "_gpu", lambda: device)
    session = Session("nano", "cuda")
    message = r"1280x720 needs [\d,]+ MiB on the GPU, of which \d+ MiB are free"
    with pytest.raises(BackendError, match=message):
        session.adapt(photo(0, 720, 1280), 1)
    assert device.peak_bytes < 64 * MIB
    assert len(session.adapt(photo(0, 48, 64), 1).losses) == 2
