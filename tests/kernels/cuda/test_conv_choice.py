"""Which CUDA kernel and tile a convolution is given, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.conv import ConvSpec, conv
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs


def same(kernel: int, **others) -> ConvSpec:
    """As large as the input at stride 1."""
    return ConvSpec((kernel, kernel), pads=(kernel // 2, kernel // 2), **others)


TRANSPOSED = ConvSpec((4, 4), (2, 2), (1, 1), transposed=True)


def image(channels, size, dtype="f16"):
    """Of a device that is not here."""
    height, width = size
    strides = (height * width * channels, 1, width * channels, channels)
    return ImageArgs.at(256, (1, channels, height, width), strides, dtype)


def chosen(spec, inputs, outputs, size, out_size=None, address=256):
    size_of = spec.packed_size(inputs, outputs)
    weights = TensorArgs.at(address, (size_of,), (1,), spec.weights_dtype)
    x, y = image(inputs, size), image(outputs, out_size or size)
    return conv(spec, [x], weights, y).launches[0]


def test_the_kernel_that_is_chosen():
    size = (720, 1280)

    def kernel(inputs, outputs, spec, **others):
        return chosen(spec, inputs, outputs, size, **others).kernel

    half, tf32 = same(3, compute="f16"), same(3, compute="tf32")
    assert kernel(16, 16, half) == "conv_f16_3_16"
    assert kernel(16, 16, same(3, compute="bf16")) == "conv_bf16_3_16"
    assert kernel(16, 16, tf32) == "conv_tf32_3_16"
    assert kernel(16, 16, same(3)) == "conv_direct_3_8"
    assert kernel(16, 3, half) == "conv_f16_3_8"
    assert kernel(6, 64, half) == "conv_f16_3_32"
    assert kernel(64, 32, same(1, compute="f16")) == "conv_f16_1_32"
    assert kernel(3, 3, half) == "conv_direct_3_4"  # tensor cores would multiply zeros
    assert kernel(16, 16, same(3, compute="f16", group=16)) == "conv_direct_3_4"
    assert kernel(16, 16, replace(half, transposed=True)) == "conv_f16_3_16"
    assert kernel(16, 16, replace(same(3), transposed=True)) == "conv_direct_3_8"
    assert kernel(16, 16, half, address=258) == "conv_direct_3_8"  # weights that are no vectors
    assert kernel(16, 16, same(3, dilations=(1, 2))) == "conv_direct_1_8"
    assert kernel(16, 16, same(3, strides=(9, 9), compute="f16")) == "conv_plain"
    phases = replace(TRANSPOSED, strides=(5, 5), compute="f16")
    assert kernel(16, 16, phases) == "conv_plain"  # 5
    # More columns than csrc/conv_stage.cuh divides by exactly.
    assert kernel(8, 32, ConvSpec((1, 3), dilations=(1, 600))) == "conv_plain"
    assert kernel(8, 32, ConvSpec((1, 3), dilations=(1, 450))) == "conv_direct_1_8"


@pytest.mark.parametrize("compute", ["f32", "f16"])
def test_tiles_leave_no_device_idle(compute):
    # Blocks enough for the largest device, if the image has them; large ones otherwise.
    for inputs, outputs in ((16, 16), (32, 32), (64, 64)):
        spec = same(3, compute=compute)
        large = chosen(spec, inputs, outputs, (720, 1280))
        assert prod(large.grid) >= 900
        assert large.block[0] == 256
        small = chosen(spec, inputs, outputs, (90, 160))
        assert prod(small.grid) >= 100
        positions = prod(large.arguments.tile) * large.grid[1] * large.grid[2]
        assert positions <= 1.05 * 720 * 1280


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"x": [image(2, (4, 6))]}, "weights must be 144 contiguous f32, got shape"),
        ({"x": [image(1, (4, 5))] * 5}, "x must be 1 to 4 images, got 5"),
        ({"x": [image(1, (4, 5)), image(1, (3, 5))]}, "the images x must have one size"),
        ({"x": [image(2, (4, 5), "bool")]}, "x must be float32, float16 or bfloat16, got type 2"),
        ({"y": image(0, (4, 5))}, "y must have pixels, got 0 channels of 4x5"),
        ({"post": image(2, (4, 6))}, "post must be 4x5, got 2 channels of 4x6"),
        ({"mask": image(3, (4, 5))}, "mask must have 2 channels, got 3"),
        ({"bias": TensorArgs.at(256, (3,), (1,), "f32")}, "bias must be 2 contiguous f32, got"),
        ({"bias": TensorArgs.at(256, (2,), (1,), "f16")}, "bias must be 2 contiguous f32, got"),
        ({"bias": TensorArgs.at(256, (2,), (2,), "f32")}, "bias must be 2 contiguous f32, got"),
        ({"spec": same(3, compute="f16")}, "weights must be 144 contiguous f16, got shape"),
        ({"spec": same(3, group=3)}, "group must divide the channels of x and y, 2 and 2, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, text):
    weights = TensorArgs.at(256, (144,), (1,), "f32")
    if "x" in wrong and "weights" in text:
        weights = TensorArgs.at(256, (145,), (1,), "f32")
    y = image(2, (4, 5))
    given = {"spec": same(3), "x": [y], "weights": weights, "y": y}
    with pytest.raises(ArrayError, match=f"conv: {text}"):
        conv(**{**given, **wrong})


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kernel": (0, 3)}, r"kernel must be two positive numbers, got \(0, 3\)"),
        ({"strides": (1,)}, r"strides must be two positive numbers, got \(1,\)"),
        ({"group": 0}, "group be positive, got"),
        ({"compute": "int8"}, "compute must be one of f32, tf32, f16, bf16, got 'int8'"),
    ],
)
def test_a_convolution_that_there_is_not_is_refused(wrong, text):
    with pytest.raises(ArrayError, match=text):
        ConvSpec(**{"kernel": (3, 3), **wrong})


def test_the_next_chunk_is_brought_meanwhile_where_there_is_one_and_room_for_it():
    def windows(inputs, outputs, spec):
        return chosen(spec, inputs, outputs, (180, 320)).arguments.windows

    half = same(3, compute="f16")
    assert windows(16, 16, half) == 1
    assert windows(32, 32, half) == windows(17, 64, half) == 2
    assert windows(32, 32, same(3, compute="bf16")) == windows(64, 32, same(1, compute="f16")) == 2
    assert windows(32, 32, same(3, compute="tf32")) == windows(32, 32, same(3)) == 1
    assert windows(32, 32, same(11, compute="f16")) == 1


def test_images_are_read_in_vectors_where_they_may_be():
    def vectors(address=256, row=640, pixel=16, channel=1, dtype="f16", spec=None, outputs=16):
        spec = spec or same(3, compute="f16")
        odd = ImageArgs.at(address, (1, 16, 9, 40), (9, channel, row, pixel), dtype)
        weights = TensorArgs.at(256, (spec.packed_size(32, outputs),), (1,), spec.weights_dtype)
        even, y = image(16, (9, 40)), image(outputs, (9, 40))
        operands = {"add0": y, "mask": odd} if outputs == 16 else {"add0": y}
        return conv(spec, [odd, even], weights, y, **operands).launches[0].arguments.common.vectors

    odd = 1 | 1 << 6  # as a source and as an operand
    others = 2 | 1 << 4 | 1 << 5
    together = 1 << 9  # all operands, and of the type that is multiplied
    all_of_them = odd | others | together
    assert vectors(dtype="f32") == odd | others
    assert vectors() == vectors(pixel=24, row=960) == vectors(address=4096) == all_of_them
    only_mask = 1 << 6 | others | together
    assert vectors(address=264) == vectors(pixel=20, row=800) == only_mask  # 4 halves of it
    assert vectors(row=644, dtype="f16") == only_mask
    for wrong in ({"address": 258}, {"row": 642}, {"pixel": 18}, {"channel": 2, "pixel": 32}):
        assert vectors(**wrong) == others
    # The second group begins with channel 12: 4 are a vector, 8 are none.
    assert vectors(spec=same(3, group=2), outputs=24) == 0b11
    assert vectors(spec=same(3, group=2), outputs=32) == 0b110011
