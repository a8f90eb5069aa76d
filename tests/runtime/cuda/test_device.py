"""What every device keeps to, shown on the one made of host memory."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.copy import copy, fill
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.runtime.cuda.device import ALIGNMENT, Device, argument_bytes, byte_count, holds
from support import host_device
from support.cuda_host import HostError
from support.host_device import HostDevice
from support.host_memory import MisuseError

COUNT = 300  # two blocks of 256 threads
BYTES = 4 * COUNT


def vector(address: int, count: int = COUNT) -> TensorArgs:
    return TensorArgs.at(address, (count,), (1,), "f32")


def copying(x: int, y: int) -> Launch:
    (launch,) = copy(vector(x), vector(y)).launches
    return launch


@pytest.fixture(params=[True, False], ids=["lazy", "eager"])
def device(request):
    opened = HostDevice(lazy=request.param)
    yield opened
    opened.close()


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)


def test_it_is_a_device():
    def takes(device: Device) -> Device:
        return device

    assert takes(HostDevice()).info.architecture == "sm_87"


def test_what_is_uploaded_goes_through_a_kernel_and_comes_back(device, values):
    x, y = device.allocate(BYTES), device.allocate(BYTES)
    assert x % ALIGNMENT == 0 == y % ALIGNMENT
    result = np.zeros(COUNT, np.float32)
    device.prepare(["copy"])
    device.upload(x, values)
    device.launch(copying(x, y))
    device.download(result, y)
    device.synchronize()
    np.testing.assert_array_equal(result, values)
    assert device.asked["launch"] == device.ran["launch"] == device.kernels["copy"] == 1


def test_copies_and_fills_run_in_order(device, values):
    x, y = device.allocate(BYTES), device.allocate(BYTES)
    result = np.zeros(COUNT, np.float32)
    device.upload(x, values)
    device.copy(y, x, BYTES)
    device.fill(x, 0, BYTES)
    device.copy(y + 8, x, 4)
    device.download(result, y)
    device.synchronize()
    expected = values.copy()
    expected[2] = 0
    np.testing.assert_array_equal(result, expected)


def test_arguments_are_those_of_the_launch(device):
    x = device.allocate(BYTES)
    (launch,) = fill(vector(x), 1.0).launches
    device.launch(launch)
    launch.arguments.value = 2.0
    device.synchronize()
    assert (device.array(x, (COUNT,), np.float32) == 1).all()


def test_new_memory_is_nan(device):
    address = device.allocate(BYTES)
    assert np.isnan(device.array(address, (COUNT,), np.float32)).all()


def test_a_graph_is_recorded_once_and_runs_often(device, values):
    x, y = device.allocate(BYTES), device.allocate(BYTES)
    source, target = device.pinned((COUNT,), np.float32), device.pinned((COUNT,), np.float32)

    def work():
        device.upload(x, source.array)
        device.launch(copying(x, y))
        device.download(target.array, y)

    graph = device.capture(work)
    device.synchronize()
    assert device.ran["launch"] == 0
    assert [o.kind for o in graph.operations] == ["upload", "launch", "download"]
    for factor in (1, 2, 3):
        source.array[...] = factor * values
        graph.launch()
        device.synchronize()
        np.testing.assert_array_equal(target.array, factor * values)
    assert (device.asked["graph"], device.asked["launch"], device.ran["launch"]) == (3, 1, 3)
    graph.close()
    with pytest.raises(MisuseError, match="closed"):
        graph.launch()


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda device: device.allocate(4),
        lambda device: device.free(0),
        lambda device: device.pinned((4,), np.uint8),
        lambda device: device.synchronize(),
        lambda device: device.mark(),
        lambda device: device.entered().__enter__(),
        lambda device: device.close(),
        lambda device: device.capture(lambda: None),
        lambda device: device.upload(device.memory.allocate(4), np.zeros(1, np.float32)),
    ],
)
def test_a_graph_cannot_record(device, forbidden):
    with pytest.raises(MisuseError):
        device.capture(lambda: forbidden(device))
    device.synchronize()  # the device is as it was


def test_what_recording_raises_is_raised(device):
    def work():
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        device.capture(work)
    device.synchronize()


class Doubling:
    """What stands for a library: doubles a vector."""

    name = "doubling"

    def __init__(self, device, x, writes):
        self.device, self.x = device, x
        self.reads, self.writes = [(x, BYTES)], [writes]

    def enqueue(self, stream: int) -> None:
        self.device.array(self.x, (COUNT,), np.float32)[...] *= 2


def test_a_library_s_work_runs_in_order_and_is_checked(device, values):
    x, result = device.allocate(BYTES), np.zeros(COUNT, np.float32)
    device.upload(x, values)
    with device.entered() as stream:
        assert stream == 0
        device.call(Doubling(device, x, (x, BYTES)))
    device.download(result, x)
    device.synchronize()
    np.testing.assert_array_equal(result, 2 * values)
    with pytest.raises(MisuseError, match=r"doubling: writes\[0\]"):
        device.call(Doubling(device, x, (x, BYTES + 1)))


def test_moments_pass_in_order(device):
    x = device.allocate(BYTES)
    before = device.mark()
    device.fill(x, 0, BYTES)
    after = device.mark()
    assert after.seconds_since(before) > 0
    with pytest.raises(MisuseError, match="another device"):
        after.seconds_since(HostDevice().mark())


def test_what_does_not_fit_is_refused_with_both_numbers():
    device = HostDevice(memory_bytes=5000)
    device.allocate(2000)
    assert device.free_bytes() == 3000
    with pytest.raises(BackendError, match=r"3,001 bytes .* asked for and 3,000 are free"):
        device.allocate(3001)
    device.allocate(3000)


def test_a_kernel_that_does_not_exist_is_named(device, monkeypatch):
    def compile_everything(kernel):
        raise HostError(f"no file has a kernel {kernel!r}")

    monkeypatch.setattr(host_device, "library_of", compile_everything)
    with pytest.raises(BackendError, match="'nothing'"):
        device.prepare(["nothing"])


def test_a_closed_device_refuses_everything():
    device = HostDevice()
    address = device.allocate(8)
    device.close()
    device.close()
    device.free(address)
    with pytest.raises(BackendError, match="was closed"):
        device.allocate(8)


def test_an_array_with_gaps_is_not_copied(device):
    x = device.allocate(BYTES)
    with pytest.raises(ValueError, match="contiguous"):
        device.upload(x, np.zeros((4, 4))[:, ::2])
    with pytest.raises(ValueError, match="contiguous"):
        device.download(np.zeros((4, 4)).T, x)


def test_an_array_lies_in_a_piece_of_memory_or_does_not():
    array = np.zeros(8, np.uint8)
    start = array.ctypes.data
    assert holds([(0, 4), (start, 8)], array)
    assert holds([(start - 1, 10)], array)
    assert not holds([(start, 7)], array)
    assert not holds([(start + 1, 9)], array)


def test_sizes():
    assert byte_count((2, 3), np.float16) == 12
    assert byte_count((), np.float32) == 4
    assert byte_count((1 << 20, 1 << 20), np.uint8) == 1 << 40
    assert argument_bytes(vector(7))[:8] == (7).to_bytes(8, "little")
