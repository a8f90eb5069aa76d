"""What the device of host memory finds out: addresses, lifetimes, order; and faults on request."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.copy import copy
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from support.host_device import Faults, HostDevice
from support.host_memory import MisuseError, uses_of

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
def lazy():
    return HostDevice()


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)


class Doubling:
    """What stands for a library: doubles a vector."""

    name = "doubling"

    def __init__(self, device, x, writes):
        self.device, self.x = device, x
        self.reads, self.writes = [(x, BYTES)], [writes]

    def enqueue(self, stream: int) -> None:
        self.device.array(self.x, (COUNT,), np.float32)[...] *= 2


def test_a_result_that_is_read_too_early_is_nan(lazy, values):
    x, result = lazy.allocate(BYTES), np.zeros(COUNT, np.float32)
    lazy.upload(x, values)
    lazy.download(result, x)
    assert np.isnan(result).all()
    lazy.synchronize()
    np.testing.assert_array_equal(result, values)


def test_a_source_that_changes_too_early_shows(lazy, values):
    x, result = lazy.allocate(BYTES), np.zeros(COUNT, np.float32)
    lazy.upload(x, values)
    values[...] = 7
    lazy.download(result, x)
    lazy.synchronize()
    assert (result == 7).all()


def test_the_results_of_a_graph_are_nan_until_it_has_run(lazy):
    x, target = lazy.allocate(BYTES), lazy.pinned((COUNT,), np.float32)
    lazy.fill(x, 0, BYTES)
    graph = lazy.capture(lambda: lazy.download(target.array, x))
    target.array[...] = 1
    graph.launch()
    assert np.isnan(target.array).all()
    lazy.synchronize()
    assert (target.array == 0).all()


def test_a_graph_whose_memory_is_gone_cannot_run(device):
    x, sources = device.allocate(BYTES), [device.pinned((COUNT,), np.float32)]
    uploads = device.capture(lambda: device.upload(x, sources[0].array))
    fills = device.capture(lambda: device.fill(x, 0, BYTES))
    sources.clear()
    gc.collect()
    with pytest.raises(MisuseError, match="pinned memory that lives"):
        uploads.launch()
    device.free(x)
    with pytest.raises(MisuseError, match="freed memory"):
        fills.launch()


def test_nothing_is_allocated_where_nothing_may_be(device):
    with device.frozen(), pytest.raises(MisuseError, match="64 bytes"):
        device.allocate(64)
    device.allocate(64)

    class Greedy(Doubling):
        def enqueue(self, stream: int) -> None:
            self.device.allocate(4)

    x = device.allocate(BYTES)
    graph = device.capture(lambda: device.call(Greedy(device, x, (x, BYTES))))
    with pytest.raises(MisuseError, match="4 bytes are allocated"):  # noqa: PT012
        graph.launch()
        device.synchronize()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (lambda x: TensorArgs.at(x, (COUNT + 1,), (1,), "f32"), "1204 bytes, begins 0 bytes into"),
        (lambda x: TensorArgs.at(x, (COUNT + 1,), (2,), "f16"), "1202 bytes, begins 0"),
        (lambda x: TensorArgs.at(x + 4, (2,), (-2,), "f32"), "12 bytes, is in no memory"),
        (lambda x: TensorArgs.at(x + 2, (1,), (1,), "f32"), "not 4-aligned"),
        (lambda x: TensorArgs(x, 4, 1), "dtype 4"),
        (lambda x: TensorArgs(x, 0, 7), "7 axes"),
        (lambda x: ImageArgs.at(x, (1, 3, 10, 11), (0, 1, 33, 3), "f32"), "1320 bytes, begins 0"),
    ],
    ids=["long", "strided", "backwards", "unaligned", "type", "rank", "image"],
)
def test_a_tensor_lies_whole_in_live_memory(device, tensor, says):
    x = device.allocate(BYTES)
    wrong = tensor(x)

    class Args(ctypes.Structure):
        _fields_ = (("wrong", type(wrong)), ("y", TensorArgs))

    with pytest.raises(MisuseError, match=says):
        device.launch(Launch("copy", (1, 1, 1), (256, 1, 1), Args(wrong, vector(x))))


def test_every_pointer_of_the_arguments_is_looked_at():
    class Pair(ctypes.Structure):
        _fields_ = (("first", TensorArgs), ("flag", ctypes.c_void_p))

    class Args(ctypes.Structure):
        _fields_ = (
            ("pairs", Pair * 2),
            ("image", ImageArgs),
            ("absent", ImageArgs),
            ("scratch", ctypes.c_void_p * 2),
            ("count", ctypes.c_int64),
        )

    image = ImageArgs.at(64, (1, 2, 3, 4), (0, 12, 4, 1), "bf16")
    args = Args((Pair * 2)(Pair(vector(256), 5), Pair()), image, ImageArgs(), (0, 9), 11)
    assert [(use.name, use.span) for use in uses_of(args)] == [
        ("pairs[0].first", (256, BYTES)),
        ("pairs[0].flag", (5, 1)),
        ("image", (64, 48)),
        ("scratch[1]", (9, 1)),
    ]


def test_memory_that_was_freed_is_not_used(device, values):
    x = device.allocate(BYTES)
    device.synchronize()
    device.free(x)
    for use in (
        lambda: device.upload(x, values),
        lambda: device.fill(x, 0, 4),
        lambda: device.launch(copying(x, x)),
    ):
        with pytest.raises(MisuseError, match="freed memory of 1200"):
            use()
    with pytest.raises(MisuseError, match="freed before"):
        device.free(x)


def test_memory_is_nan_again_once_freed(device):
    x = device.allocate(BYTES)
    left = device.array(x, (COUNT,), np.float32)
    left[...] = 0
    device.free(x)
    assert np.isnan(left).all()
    x = device.allocate(BYTES)
    ctypes.memset(x - 1, 0, 1)
    with pytest.raises(MisuseError, match="wrote before an allocation"):
        device.free(x)


def test_memory_is_not_freed_under_pending_work(lazy):
    x = lazy.allocate(BYTES)
    lazy.fill(x, 0, BYTES)
    with pytest.raises(MisuseError, match="have not run"):
        lazy.free(x)


def test_two_allocations_are_not_one(device):
    x, y = device.allocate(BYTES), device.allocate(BYTES)
    with pytest.raises(MisuseError, match="to at"):
        device.copy(min(x, y), max(x, y), abs(x - y))
    with pytest.raises(MisuseError, match="overlap"):
        device.copy(x, x + 4, 8)


def test_who_writes_beside_an_allocation_is_found(device):
    class Rude(Doubling):
        def enqueue(self, stream: int) -> None:
            ctypes.memset(self.x + BYTES, 0, 1)

    x = device.allocate(BYTES)
    with pytest.raises(MisuseError, match="doubling wrote behind an allocation of 1200"):  # noqa: PT012
        device.call(Rude(device, x, (x, BYTES)))
        device.synchronize()


def test_mapped_memory_is_the_device_s_on_unified_ones(values):
    device = HostDevice(unified=True)
    source, target = device.pinned((COUNT,), np.float32), device.pinned((COUNT,), np.float32)
    source.array[...] = values
    assert source.address is not None
    assert target.address is not None
    device.launch(copying(source.address, target.address))
    device.synchronize()
    np.testing.assert_array_equal(target.array, values)
    address = source.address
    del source
    gc.collect()
    with pytest.raises(MisuseError, match="in no memory"):
        device.launch(copying(address, target.address))


def test_page_locked_memory_is_the_host_s_on_others():
    device = HostDevice()
    buffer = device.pinned((2, 3), np.float16)
    assert buffer.address is None
    assert buffer.array.shape == (2, 3)
    with pytest.raises(MisuseError, match="in no memory"):
        device.fill(buffer.array.ctypes.data, 0, 4)


def test_an_allocation_can_be_made_to_fail():
    device = HostDevice(faults=Faults(full_at=2))
    address = device.allocate(8)
    with pytest.raises(BackendError, match="8 bytes"):
        device.allocate(8)
    device.fill(address, 0, 8)
    device.synchronize()


def test_a_device_can_be_lost_and_says_so_from_then_on():
    device = HostDevice(faults=Faults(lost_at=2))
    x = device.allocate(BYTES)
    graph = device.capture(lambda: device.launch(copying(x, device.memory.allocate(BYTES))))
    graph.launch()
    device.synchronize()
    graph.launch()
    device.fill(x, 0, BYTES)
    for use in (device.synchronize, graph.launch, device.free_bytes, lambda: device.fill(x, 0, 1)):
        with pytest.raises(BackendError, match="host does not answer any more"):
            use()
    assert device.ran["fill"] == 0
    device.free(x)
    device.close()


def test_an_architecture_can_be_unsupported():
    device = HostDevice(faults=Faults(unsupported=True))
    with pytest.raises(BackendError, match="no CUDA kernel 'copy' for sm_87"):
        device.prepare(["copy"])


def test_two_threads_at_once_are_found_out():
    device, inside, leave = HostDevice(), threading.Event(), threading.Event()

    def work():
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=device.capture, args=(work,))
    thread.start()
    inside.wait(10)
    with pytest.raises(MisuseError, match="another thread"):
        device.free_bytes()
    leave.set()
    thread.join()
    assert device.free_bytes() > 0
