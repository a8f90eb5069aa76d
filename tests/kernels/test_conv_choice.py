"""Which algorithm a convolution is given, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.conv import ConvSpec, Vectors, choose_algorithm, conv, pack_weights
from edgeadapt.kernels.tensors import PlaneArgs, TensorArgs


def same(kernel: int, **others) -> ConvSpec:
    """As large as the input at stride 1."""
    return ConvSpec((kernel, kernel), pads=(kernel // 2, kernel // 2), **others)


@pytest.mark.parametrize("bf16", [False, True])
def test_winograd_is_chosen_where_it_spares_time(bf16):
    def chosen(spec, inputs, outputs, size=(256, 256)):
        found = choose_algorithm(spec, inputs, outputs, size, Vectors(16, bf16))
        assert (found.kernel, found.strides, found.pads) == (spec.kernel, spec.strides, spec.pads)
        return found.algorithm, found.compute

    assert chosen(same(3), 16, 16) == ("winograd", "f32")
    assert chosen(same(3), 16, 1) == ("direct", "f32")
    assert chosen(same(3), 16, 16, (4, 4)) == ("direct", "f32")  # a vector of 16 squares
    for other in (same(1), same(3, strides=(2, 2)), same(3, group=2)):
        assert chosen(other, 16, 16) == ("direct", "f32")
    # What may be rounded is, where products of bfloat16 exist and Winograd's are not fewer still.
    rounded = "bf16" if bf16 else "f32"
    assert chosen(same(3, compute="bf16"), 64, 64) == ("winograd", "f32")
    narrow = chosen(same(3, compute="bf16"), 64, 64, (32, 32))
    assert narrow == ("direct" if bf16 else "winograd", rounded)
    assert chosen(same(1, compute="bf16"), 32, 16) == ("direct", rounded)


def images(*channels, size=(4, 5)):
    return [PlaneArgs.of(np.zeros((1, c, *size), np.float32)) for c in channels]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"x": images(2, 2, size=(4, 6))}, "weights must be 72 contiguous float32, got shape"),
        ({"x": images(1) * 5}, "x must be 1 to 4 images, got 5"),
        ({"x": [*images(1), *images(1, size=(3, 5))]}, "the images x must have one size"),
        ({"post": images(2, size=(4, 6))[0]}, r"post must have y's size \(2, 4, 5\), got"),
        ({"bias": TensorArgs.of(np.zeros(3, np.float32))}, "bias must be 2 contiguous float32"),
        ({"x": [PlaneArgs.of(np.zeros((1, 2, 4, 5), bool))]}, "x must be float32 or bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, text):
    given = {"x": images(2), "weights": TensorArgs.of(np.zeros(36, np.float32)), "y": images(2)[0]}
    assert conv(same(3), **given).y.channels == 2
    with pytest.raises(ArrayError, match=f"conv: {text}"):
        conv(same(3), **{**given, **wrong})


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kernel": (0, 3)}, r"kernel must be two positive numbers, got \(0, 3\)"),
        ({"group": 0}, "group be positive, got"),
        ({"compute": "f16"}, "compute must be 'f32' or 'bf16', got 'f16'"),
        ({"algorithm": "fft"}, "algorithm must be one of direct, winograd, got 'fft'"),
        ({"algorithm": "winograd", "group": 2}, "winograd must be float32, 3x3, without strides"),
    ],
)
def test_a_convolution_that_there_is_not_is_refused(wrong, text):
    with pytest.raises(ArrayError, match=text):
        ConvSpec(**{"kernel": (3, 3), **wrong})


def test_channels_outside_of_the_weight_are_refused():
    weight = TensorArgs.of(np.zeros((4, 2, 3, 3), np.float32))
    with pytest.raises(ArrayError, match=r"out_channels must lie within 4, .* got \(2, 3\)"):
        pack_weights(same(3), weight, TensorArgs.of(np.zeros(54, np.float32)), (2, 3))
