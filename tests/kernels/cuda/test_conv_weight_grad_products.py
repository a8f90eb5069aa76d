"""The last launch of a weight gradient, where another library has multiplied."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.conv_weight_grad import from_channels_last
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.kernels.reference import conv_weight_grad as reference
from support.strided import wide

RTOL = 1e-6  # of the norm: as in test_conv_weight_grad.py

# (O, C, kh, kw), and what is summed for the bias.
OTHERS_PRODUCTS = {
    "3x3 with a bias": ((9, 5, 3, 3), ((1, 9, 41, 37), "f16")),
    "2x3 with the bias of x": ((8, 4, 2, 3), ((1, 4, 3, 5), "f32")),
    "one tap without": ((33, 7, 1, 1), None),
    "one channel without": ((1, 1, 5, 7), None),
}


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("name", OTHERS_PRODUCTS)
def test_products_of_a_library(run, guarded, rng, name, add):
    shape, image = OTHERS_PRODUCTS[name]
    given = rng.standard_normal(shape).astype(np.float32)
    products = guarded((shape[0], *shape[2:], shape[1]), "nchw", "f32", given.transpose(0, 2, 3, 1))
    before = rng.standard_normal(shape).astype(np.float32) if add else np.float32(0)
    weight = guarded(shape, "nchw", "f32", before if add else None)
    bias = of = None
    if image is not None:
        of = guarded(image[0], "strided", image[1], rng.standard_normal(image[0]))
        bias = guarded((image[0][1],), "nchw", "f32", 0.5 if add else None)

    def make(scratch):
        return from_channels_last(
            products.ctypes.data,
            TensorArgs.of(weight),
            None if bias is None else TensorArgs.of(bias),
            None if of is None else ImageArgs.of(of),
            add_weight=add,
            add_bias=add,
            scratch=scratch,
        )

    run(make)
    np.testing.assert_array_equal(weight, before + given)
    if bias is not None:
        wanted = reference.bias_gradient(wide(of)) + 0.5 * add
        assert np.linalg.norm(bias - wanted) <= RTOL * np.linalg.norm(wanted)


WEIGHT = TensorArgs.at(256, (4, 4, 3, 3), (36, 9, 3, 1), "f32")


def image_of(rows):
    """Four channels somewhere: nothing is launched."""
    return ImageArgs.at(256, (1, 4, rows, 5), (0, 1, 20, 4), "f16")


def test_products_of_a_library_for_another_bias_are_refused():
    with pytest.raises(ArrayError, match=r"bias must be \(4\), got \(5,\)"):
        from_channels_last(256, WEIGHT, TensorArgs.at(256, (5,), (1,), "f32"), image_of(4))
    with pytest.raises(ArrayError, match="of must have pixels"):
        from_channels_last(256, WEIGHT, TensorArgs.at(256, (4,), (1,), "f32"), image_of(0))
