"""What the device asks of PyCUDA and cuda-bindings, shown on fakes of both."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda import pycuda_context, pycuda_device
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.pycuda_context import Contexts
from edgeadapt.runtime.cuda.pycuda_device import open_device
from support.fake_cuda import FakeCuda

STREAM_CALLS = ("cuMemcpyHtoDAsync", "cuMemcpyDtoDAsync", "cuMemsetD8Async", "cuMemcpyDtoHAsync")


class Args(ctypes.Structure):
    """A kernel's, for one that copies them to where they begin with."""

    _fields_ = (("to", ctypes.c_void_p), ("count", ctypes.c_int64), ("factor", ctypes.c_double))


def launch_of(kernel: str, to: int, count: int = 7) -> Launch:
    return Launch(kernel, (3, 2, 1), (64, 2, 1), Args(to, count, 0.5))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    made = FakeCuda()
    made.install(monkeypatch)
    monkeypatch.setattr(pycuda_device, "contexts", Contexts())
    image = tmp_path / "kernels.fatbin"
    image.write_bytes(b"fatbin")
    monkeypatch.setattr(pycuda_context, "IMAGES", [lambda architecture: image])
    yield made
    assert made.depth == 0, "a context is left on this thread's stack"
    assert made.complaints == []


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


def test_what_cannot_be_recorded_is_said(device, fake):
    fake.fails["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with pytest.raises(BackendError, match=r"record a graph \(cuStreamEndCapture failed: CUDA_E"):
        device.capture(lambda: None)


def test_nothing_is_given_back_by_a_thread_that_records(device, fake):
    buffers = [device.pinned((4,), np.uint8)]
    others = [open_device()]
    marks = [device.mark()]

    def work():
        for things in (buffers, others, marks):
            things.clear()
        gc.collect()

    device.capture(work).close()
    assert (fake.live["pinned"], fake.live["event"], fake.live["stream"]) == (0, 0, 1)


def test_page_locked_memory_lives_as_long_as_its_array(device, fake):
    buffer = device.pinned((2, 3), np.float16)
    assert (buffer.array.shape, buffer.array.dtype, buffer.address) == ((2, 3), np.float16, None)
    assert fake.called("cuMemHostAlloc") == [("cuMemHostAlloc", (12,), 1)]
    scalar, empty = device.pinned((), np.float32), device.pinned((0, 4), np.float32)
    assert (scalar.array.shape, empty.array.shape) == ((), (0, 4))
    row = buffer.array[1]
    device.close()
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


def test_what_does_not_fit_is_refused_before_it_is_allocated(device, fake):
    with pytest.raises(BackendError, match=r"1,048,577 bytes .* asked for and 1,048,576 are free"):
        device.allocate((1 << 20) + 1)
    assert fake.called("cuMemAlloc") == []
    fake.fails["cuMemAlloc"] = "out of memory"  # in one piece
    with pytest.raises(BackendError, match=r"99 bytes .* 1,048,576 are free"):
        device.allocate(99)
    device.allocate(99)
    assert device.free_bytes() == 1 << 20


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


def test_everything_is_given_back(fake):
    device, other = open_device(), open_device()
    addresses = [device.allocate(4), device.allocate(4)]
    graph, mark = device.capture(lambda: None), device.mark()
    assert fake.live["memory"] == 2
    device.free(addresses[0])
    assert fake.live["memory"] == 1
    other.allocate(4)
    device.close()
    device.close()
    device.free(addresses[1])
    assert +fake.live == {"context": 1, "stream": 1, "memory": 1}
    for use in (device.synchronize, lambda: device.allocate(1), graph.launch, device.free_bytes):
        with pytest.raises(BackendError, match="the device was closed"):
            use()
    del other, graph, mark
    gc.collect()
    assert +fake.live == {"context": 1}
    assert len(fake.called("cuDevicePrimaryCtxRetain")) == 1


def test_threads_share_the_context_and_leave_none_behind(device, fake):
    x = device.allocate(24)
    kept = [device.pinned((4,), np.uint8), device.mark()]
    depths, problems = [], []

    def work():
        try:
            other = open_device()
            other.launch(launch_of("scale", other.allocate(24)))
            mark = other.mark()
            device.launch(launch_of("scale", x))
            device.synchronize()
            kept.clear()  # what the main thread made ends here
            del mark, other
            gc.collect()
            depths.append(fake.depth)
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert depths == [0] * 4
    assert +fake.live == {"context": 1, "module": 1, "stream": 1, "memory": 1}


def test_a_lost_device_says_so_and_is_not_asked_again(device, fake):
    fake.crashes.add("wild")
    other = open_device()
    x, buffer, mark = device.allocate(24), device.pinned((4,), np.uint8), device.mark()
    graph = device.capture(lambda: None)
    device.launch(launch_of("wild", x))
    with pytest.raises(BackendError, match=r"Fake does not answer any more .*fill 1 .*illegal mem"):
        device.fill(x, 0, 1)
    asked = len(fake.log)
    for use in (device.synchronize, graph.launch, other.mark, open_device, other.free_bytes):
        with pytest.raises(BackendError, match="does not answer any more"):
            use()
    device.free(x)
    device.close()
    buffer.array[...] = 1
    del graph, mark, buffer, other, device
    gc.collect()
    assert len(fake.log) == asked
    assert (fake.live["memory"], fake.live["pinned"]) == (1, 1), "freed a second time"


def test_a_launch_that_is_refused_loses_nothing(device, fake):
    x = device.allocate(24)
    fake.fails["cuLaunchKernel"] = "too many resources requested for launch"
    with pytest.raises(BackendError, match=r"cannot launch scale \(.* too many resources"):
        device.launch(launch_of("scale", x))
    device.launch(launch_of("scale", x))


def test_an_error_while_a_graph_is_recorded_ends_the_recording(device, fake):
    x = device.allocate(24)
    fake.fails["cuLaunchKernel"] = "invalid argument"
    with pytest.raises(BackendError, match="cannot launch scale"):
        device.capture(lambda: device.launch(launch_of("scale", x)))
    assert fake.recording is None
    device.capture(lambda: device.launch(launch_of("scale", x))).launch()


class Convolution:
    """A library's work."""

    name = "conv"
    reads = writes = ()

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.streams: list[int] = []

    def enqueue(self, stream: int) -> None:
        self.streams.append(stream)
        if self.error is not None:
            raise self.error


def test_a_library_works_on_the_same_stream(device, fake):
    call = Convolution()
    device.call(call)
    device.capture(lambda: device.call(call))
    (begun,) = {found[1] for found in fake.called("cuStreamBeginCapture")}
    assert call.streams == [begun, begun]
    error = KeyError("of its own")
    with pytest.raises(KeyError, match="of its own"):
        device.call(Convolution(error))
    fake.broken = "an illegal memory access was encountered"
    with pytest.raises(BackendError, match=r"does not answer any more .*run conv"):
        device.call(Convolution(error))


def test_a_context_that_cannot_be_popped_is_taken_off_the_stack(device, fake):
    fake.fails["cuCtxPopCurrent"] = "unknown error"
    with pytest.raises(BackendError, match="unknown error"):
        device.fill(device.allocate(4), 0, 4)
    assert fake.depth == 0
    assert fake.called("detach")


def test_a_kernel_that_does_not_exist_is_named(device):
    with pytest.raises(BackendError, match=r"no CUDA kernel 'nothing' .*symbol not found"):
        device.prepare(["nothing"])


def test_kernels_are_compiled_where_none_ship(fake, monkeypatch, tmp_path):
    def ships(architecture):
        raise BackendError(f"none for {architecture}.")

    def compiles(architecture):
        image = tmp_path / f"{architecture}.cubin"
        image.write_bytes(b"cubin")
        return image

    device = open_device()
    monkeypatch.setattr(pycuda_context, "IMAGES", [ships, compiles])
    with pytest.raises(BackendError) as caught:
        device.prepare(["scale"])
    assert caught.value.message == (
        "there are no CUDA kernels for Fake (sm_87): none for sm_87.; "
        "cuModuleLoadDataEx failed: no kernel image is available."
    )
    fake.images.add(b"cubin")
    device.prepare(["scale"])
