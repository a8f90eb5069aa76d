"""What the device asks of PyCUDA and cuda-bindings, shown on fakes of both."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda import pycuda_device
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.pycuda_device import open_device

STREAM_CALLS = ("cuMemcpyHtoDAsync", "cuMemcpyDtoDAsync", "cuMemsetD8Async", "cuMemcpyDtoHAsync")


class Args(ctypes.Structure):
    """A kernel's, for one that copies them to where they begin with."""

    _fields_ = (("to", ctypes.c_void_p), ("count", ctypes.c_int64), ("factor", ctypes.c_double))


def launch_of(kernel: str, to: int, count: int = 7) -> Launch:
    return Launch(kernel, (3, 2, 1), (64, 2, 1), Args(to, count, 0.5))


@pytest.fixture
def device(fake):
    return open_device()


def test_it_says_what_it_is(fake):
    def takes(device: Device) -> Device:
        return device

    info = takes(open_device()).info
    assert (info.name, info.architecture, info.driver) == ("Fake", "sm_87", (13, 0))
    assert (info.memory_bytes, info.multiprocessors, info.unified) == (1 << 21, 8, False)
    assert info.libraries == (("pycuda", "2026.1"), ("cuda-bindings", "13.5.0"))


def test_everything_is_put_on_one_stream_that_does_not_wait_for_others(device, fake):
    assert fake.called("cuStreamCreate") == [("cuStreamCreate", 1)]
    x, y = device.allocate(1000), device.allocate(1000)
    values, result = np.arange(250, dtype=np.float32), np.zeros(250, np.float32)
    device.upload(x, values)
    device.copy(y, x, 1000)
    device.fill(y, 0, 8)
    device.download(result, y)
    device.synchronize()
    values[:2] = 0
    np.testing.assert_array_equal(result, values)
    assert fake.called(*STREAM_CALLS) == [
        ("cuMemcpyHtoDAsync", x, 1000),
        ("cuMemcpyDtoDAsync", y, x, 1000),
        ("cuMemsetD8Async", y, 0, 8),
        ("cuMemcpyDtoHAsync", y, 1000),
    ]


def test_a_kernel_gets_its_arguments_by_value(device, fake):
    x, result = device.allocate(24), np.zeros(24, np.uint8)
    launch = launch_of("scale", x)
    device.prepare(["scale"])
    device.launch(launch)
    launch.arguments.count = 8
    device.download(result, x)
    device.synchronize()
    packed = bytes(Args(x, 7, 0.5))
    assert result.tobytes() == packed
    assert fake.called("cuLaunchKernel") == [
        ("cuLaunchKernel", "scale", (3, 2, 1), (64, 2, 1), packed)
    ]
    device.launch(launch)
    assert len(fake.called("cuModuleGetFunction")) == 1
    device.prepare(["shift"])  # of the same file
    assert len(fake.called("cuModuleLoadDataEx")) == 1


def test_a_kernel_s_arguments_keep_their_size(device):
    class Other(ctypes.Structure):
        _fields_ = (("to", ctypes.c_void_p),)

    x = device.allocate(24)
    device.launch(launch_of("scale", x))
    with pytest.raises(ValueError, match="scale takes 24 bytes, got 8"):
        device.launch(Launch("scale", (1, 1, 1), (1, 1, 1), Other(x)))


def test_a_graph_is_recorded_and_launched(device, fake):
    x = device.allocate(24)
    source, target = device.pinned((3,), np.int64), device.pinned((3,), np.int64)

    def work():
        device.upload(x, source.array)
        device.launch(launch_of("scale", x))
        device.download(target.array, x)

    target.array[...] = 0
    fake.log.clear()
    graph = device.capture(work)
    assert not target.array.any()
    assert [call[0] for call in fake.log if call[0].startswith(("cuStream", "cuGraph"))] == [
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphDestroy",
        "cuGraphUpload",
    ]
    fake.log.clear()
    graph.launch()
    device.synchronize()
    assert target.array[1] == 7
    assert [c[0] for c in fake.log if "Ctx" not in c[0]] == ["cuGraphLaunch", "cuStreamSynchronize"]
    graph.close()
    graph.close()
    assert fake.live["executable"] == fake.live["graph"] == 0
    with pytest.raises(ValueError, match="closed"):
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
        lambda device: device.upload(4096, np.zeros(1, np.float32)),
        lambda device: device.download(np.zeros(1, np.float32), 4096),
    ],
)
def test_a_graph_cannot_record(device, fake, forbidden):
    with pytest.raises(ValueError, match=r"recorded|pinned"):
        device.capture(lambda: forbidden(device))
    assert fake.recording is None
    assert fake.live["graph"] == fake.live["executable"] == 0
    device.synchronize()


def test_nothing_is_given_back_by_a_thread_that_records(device, fake):
    buffers = [device.pinned((4,), np.uint8)]
    others = [open_device()]
    marks = [device.mark()]

    def work():
        for things in (buffers, others, marks):
            things.clear()
        gc.collect()

    graph = device.capture(work)
    assert (fake.live["pinned"], fake.live["event"], fake.live["stream"]) == (0, 0, 1)
    graph.close()


def test_page_locked_memory_lives_as_long_as_its_array(device, fake):
    buffer = device.pinned((2, 3), np.float16)
    assert (buffer.array.shape, buffer.array.dtype, buffer.address) == ((2, 3), np.float16, None)
    assert fake.called("cuMemHostAlloc") == [("cuMemHostAlloc", (12,), 1)]
    scalar, empty = device.pinned((), np.float32), device.pinned((0, 4), np.float32)
    assert (scalar.array.shape, empty.array.shape) == ((), (0, 4))
    row = buffer.array[1]
    device.close()
    assert fake.called("cuStreamSynchronize")
    row[...] = 1
    del buffer, scalar, empty
    gc.collect()
    assert fake.live["pinned"] == 1
    del row
    gc.collect()
    assert fake.live["pinned"] == 0


def test_page_locked_memory_is_mapped_where_memory_is_unified(fake):
    fake.unified = True
    buffer = open_device().pinned((4,), np.float32)
    assert buffer.address == buffer.array.ctypes.data
    assert fake.called("cuMemHostAlloc") == [("cuMemHostAlloc", (16,), 3)]


def test_moments(device):
    before = device.mark()
    after = device.mark()
    assert after.seconds_since(before) == pytest.approx(1.5e-3)
    with pytest.raises(ValueError, match="another device"):
        after.seconds_since(open_device().mark())


def test_free_memory_is_what_the_system_would_give_up_where_memory_is_unified(
    fake, monkeypatch, tmp_path
):
    fake.unified = True
    device = open_device()
    monkeypatch.setattr(pycuda_device, "MEMORY", tmp_path / "meminfo")
    assert device.free_bytes() == 1 << 20
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 1500 kB\n")
    assert device.free_bytes() == 1500 * 1024
    (tmp_path / "meminfo").write_text("MemAvailable: 9000 kB\n")
    assert device.free_bytes() == fake.total
