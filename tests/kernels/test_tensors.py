from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import BF16, BOOL, F32, PlaneArgs, TensorArgs
from support.guarded import Guards


def test_a_tensor_is_described_with_strides_in_elements():
    array = np.zeros((3, 4, 6), np.float32)[:, ::-2, 1:].transpose(2, 0, 1)
    found = TensorArgs.of(array)
    assert (found.data, found.dtype, found.rank) == (array.ctypes.data, F32, 3)
    assert list(found.shape) == [5, 3, 2, 0, 0, 0]
    assert list(found.strides) == [1, 24, -12, 0, 0, 0]
    assert TensorArgs.of(np.zeros(2, np.uint16)).dtype == BF16
    assert TensorArgs.of(np.zeros(2, bool)).dtype == BOOL
    assert TensorArgs().data is None


def test_an_image_is_described_without_its_first_axis():
    array = np.zeros((1, 4, 5, 9), np.float32)[:, 1::2, :, 2:8]
    found = PlaneArgs.of(array)
    assert (found.data, found.dtype) == (array.ctypes.data, F32)
    assert (found.channels, found.height, found.width) == (2, 5, 6)
    assert (found.channel_stride, found.row_stride) == (90, 9)
    assert PlaneArgs.at(64, (1, 2, 3, 4), (24, 12, 4, 1), "bf16").dtype == BF16
    PlaneArgs.of(array[..., ::6])  # one pixel a row: there are no neighbours
    assert PlaneArgs().data is None


IMAGE = np.zeros((1, 2, 3, 4), np.float32)
REFUSED = {
    r"must be \(1, C, H, W\), got shape \(2, 3, 4\)": lambda: PlaneArgs.of(IMAGE[0]),
    r"must be \(1, C, H, W\), got shape \(2, 1": lambda: PlaneArgs.of(IMAGE.swapaxes(0, 1)),
    "rows must be contiguous, got strides": lambda: PlaneArgs.of(IMAGE[..., ::2]),
    "must be float32, uint16 .* or bool, got float64": lambda: TensorArgs.of(np.zeros(2)),
    "one of f32, bf16, bool, got 'f16'": lambda: TensorArgs.at(0, (2,), (1,), "f16"),
    "up to 6 axes": lambda: TensorArgs.at(0, (1,) * 7, (1,) * 7, "f32"),
    "a stride for each": lambda: TensorArgs.at(0, (1, 2), (1,), "f32"),
    "no multiples of 4 bytes": lambda: TensorArgs.of(
        np.ndarray((2,), np.float32, bytearray(16), strides=(6,))
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    with pytest.raises(ArrayError, match=text):
        REFUSED[text]()


@pytest.mark.parametrize("place", [-1, 13])
def test_the_guards_of_the_other_tests_notice_who_writes_outside(place):
    # 13 floats that begin three behind a multiple of 64 bytes.
    guards = Guards()
    array = guards.empty((13,), offset=3)
    assert array.ctypes.data % 64 == 12
    assert np.isnan(array).all()
    guards.check()
    block = guards.blocks[0]
    guards.unwatch()
    block.memory[block.begin + 4 * place] = 0
    with pytest.raises(
        AssertionError, match=f"{'4 bytes before' if place < 0 else '0 bytes behind'}"
    ):
        guards.check()
    guards.close()
