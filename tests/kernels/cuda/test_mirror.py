"""The memory that a GPU is handed for a test, shown on a device of host memory."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.kernels.cuda.copy import copy, fill
from edgeadapt.kernels.cuda.l1_loss import l1_loss
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.runtime.cuda.device import ALIGNMENT
from support.cuda_mirror import MirroredDevice
from support.host_device import HostDevice

HOST_ONLY = True
SHAPE = (1, 3, 11, 17)


@pytest.fixture
def gpu() -> HostDevice:
    return HostDevice()


@pytest.fixture
def device(guards, gpu) -> MirroredDevice:
    return MirroredDevice(guards, gpu)


def test_what_a_kernel_writes_comes_back(run, guarded, rng, gpu):
    values = rng.standard_normal(SHAPE).astype(np.float32)
    x, y = guarded(SHAPE, "strided", fill=values), guarded(SHAPE, "nchw")
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y), scratch=scratch))
    np.testing.assert_array_equal(y, values)
    assert gpu.ran["launch"] == 2  # once more, to the same bits
    assert gpu.memory.used_bytes == 0


def test_images_arrays_of_pointers_and_working_memory_are_moved(run, guarded, rng):
    a, b = (guarded((1, 3, 70, 71), fill=rng.standard_normal((1, 3, 70, 71))) for _ in "ab")
    loss, grad = guarded((1, 1, 1, 1)), guarded(a.shape)
    images = [ImageArgs.of(array) for array in (a, b)]
    total = TensorArgs.of(loss)
    gradient = ImageArgs.of(grad)
    scale = {"value_scale": 1 / a.size, "grad_scale": 1.0}
    run(lambda scratch: l1_loss(*images, total, gradient, **scale, scratch=scratch))
    assert loss.item() == pytest.approx(np.abs(a - b).mean(), rel=1e-6)
    assert not np.isnan(grad).any()


def test_addresses_are_aligned_as_on_the_host(run, guarded, gpu, monkeypatch):
    x = guarded((40,), "strided")
    seen = []
    launch = gpu.launch
    monkeypatch.setattr(gpu, "launch", lambda one: (seen.append(one.arguments.y.data), launch(one)))
    run(lambda scratch: fill(TensorArgs.of(x), 1.0, scratch=scratch))
    assert {address % ALIGNMENT for address in seen} == {x.ctypes.data % ALIGNMENT}
    assert x.ctypes.data not in seen


def test_a_write_between_pixels_is_found(device, guarded, monkeypatch, gpu):
    x = guarded(SHAPE, "strided")
    launch = gpu.launch

    def also(one):
        launch(one)
        gpu.fill(one.arguments.y.data + 17 * 3 * 4, 0, 4)

    monkeypatch.setattr(gpu, "launch", also)
    with pytest.raises(AssertionError, match=r"wrote between the pixels|written"):
        device.run(lambda scratch: fill(TensorArgs.of(x), 1.0, scratch=scratch))


def test_a_write_before_an_array_is_found(device, guarded, monkeypatch, gpu, guards):
    x = guarded(SHAPE)
    launch = gpu.launch

    def also(one):
        launch(one)
        gpu.fill(one.arguments.y.data - 8, 0, 4)

    monkeypatch.setattr(gpu, "launch", also)
    with pytest.raises(AssertionError, match="written 8 bytes before"):
        device.run(lambda scratch: fill(TensorArgs.of(x), 1.0, scratch=scratch))
    guards.close()


def test_other_bits_in_the_second_run_are_found(device, guarded, monkeypatch, gpu):
    x = guarded(SHAPE)
    launch, values = gpu.launch, iter((1.0, 2.0))

    def varying(one):
        one.arguments.value = next(values)
        launch(one)

    monkeypatch.setattr(gpu, "launch", varying)
    with pytest.raises(AssertionError, match="results depend on the order"):
        device.run(lambda scratch: fill(TensorArgs.of(x), 1.0, scratch=scratch))
