"""What goes wrong on a GPU, or goes away, and what is left of the device then."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda import pycuda_device
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


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphUpload"])
def test_a_graph_that_cannot_be_made_leaves_nothing_behind(device, fake, call):
    fake.fails[call] = "odd"
    with pytest.raises(BackendError, match=rf"cannot record a graph \({call} failed: odd"):
        device.capture(lambda: None)
    device.close()
    assert (fake.live["graph"], fake.live["executable"]) == (0, 0)


def test_what_cannot_be_recorded_is_said(device, fake):
    fake.fails["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with pytest.raises(BackendError, match=r"record a graph \(cuStreamEndCapture failed: CUDA_E"):
        device.capture(lambda: None)


def test_what_does_not_fit_is_refused_before_it_is_allocated(device, fake):
    with pytest.raises(BackendError, match=r"1,048,577 bytes .* asked for and 1,048,576 are free"):
        device.allocate((1 << 20) + 1)
    assert fake.called("cuMemAlloc") == []
    fake.fails["cuMemAlloc"] = "out of memory"  # in one piece
    with pytest.raises(BackendError, match=r"99 bytes .* 1,048,576 are free"):
        device.allocate(99)
    device.allocate(99)
    assert device.free_bytes() == 1 << 20


def test_everything_is_given_back(fake):
    open_device().close()
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


def test_a_lost_device_says_so_and_is_not_asked_again(fake):
    fake.crashes.add("wild")
    open_device().close()
    device, other = open_device(), open_device()
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
    del graph, mark, buffer, other, device, use
    pycuda_device.contexts._open.clear()  # as when the process ends
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
    with device.entered() as stream:
        assert (stream, fake.depth) == (begun, 1)
    assert fake.depth == 0
    error = KeyError("of its own")
    with pytest.raises(KeyError, match="of its own"):
        device.call(Convolution(error))
    with pytest.raises(KeyError, match="of its own"):
        device.capture(lambda: device.call(Convolution(error)))
    device.synchronize()
    fake.broken = "an illegal memory access was encountered"
    with pytest.raises(BackendError, match=r"does not answer any more .*run conv"):
        device.call(Convolution(error))


def test_a_context_that_cannot_be_popped_is_taken_off_the_stack(device, fake):
    fake.fails["cuCtxPopCurrent"] = "unknown error"
    with pytest.raises(BackendError, match="unknown error"):
        device.fill(device.allocate(4), 0, 4)
    assert fake.depth == 0
    assert fake.called("detach")


def test_a_kernel_that_no_module_has_is_named(device, fake):
    fake.images.add(b"sm_87.cubin")
    with pytest.raises(BackendError, match=r"no CUDA kernel 'nothing' .*symbol not found\)"):
        device.prepare(["nothing"])
    assert len(fake.called("cuModuleLoadDataEx")) == 2


def test_the_next_place_is_looked_at_if_the_gpu_refuses_what_ships(device, fake):
    fake.images.clear()
    with pytest.raises(BackendError) as caught:
        device.prepare(["scale"])
    assert str(caught.value) == (
        "there is no CUDA kernel 'scale' for sm_87 (cuModuleLoadDataEx failed: no kernel image is "
        "available) Hint: build it."
    )
    fake.images.add(b"sm_87.cubin")
    device.prepare(["scale"])
    assert fake.live["module"] == 1
