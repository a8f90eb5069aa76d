from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.image import from_network, padded_size, to_network
from edgeadapt.kernels.image import image_in, image_out
from edgeadapt.kernels.reference import image as reference
from edgeadapt.kernels.tensors import PlaneArgs
from support.pictures import picture, to_bf16

# One pixel; one row, one column; smaller than what is added; groups of 16 pixels and odd ends.
SIZES = [(1, 1), (1, 5), (3, 1), (2, 3), (9, 16), (17, 50), (33, 79)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def frame(guards, rng, height: int, width: int) -> np.ndarray:
    """A part of a larger frame."""
    whole = guards.empty((height, width + 2, 3), np.uint8, offset=1)
    whole[...] = rng.integers(0, 256, whole.shape)
    return whole[:, 1 : width + 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_frame_becomes_what_core_makes_of_it(call, guards, rng, size, multiple):
    image = frame(guards, rng, *size)
    y = picture(guards, (1, 3, *padded_size(*size, multiple)))
    call("image_in", image_in(image, y.plane))
    y.check()
    np.testing.assert_array_equal(y.pixels, to_network(image, multiple))
    (expected,) = reference.image_in(image, *y.pixels.shape[2:])
    np.testing.assert_array_equal(y.pixels, expected.astype(np.float32))


def test_every_level_has_its_float(call, guards):
    image = guards.copy(np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(1, 256, 3))
    y = picture(guards, (1, 3, 1, 256))
    call("image_in", image_in(image, y.plane))
    assert len(np.unique(y.pixels)) == 256
    np.testing.assert_array_equal(y.pixels, to_network(image, 1))
    back, count = guards.empty(image.shape, np.uint8), guards.empty((1,), np.int64)
    call("image_out", image_out(y.plane, back, count))
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_levels_are_means_of_four(call, guards, rng, size, threads):
    image = frame(guards, rng, *size)
    height, width = padded_size(*size, 8)
    planes = [picture(guards, (1, 3, height >> n, width >> n)) for n in range(4)]
    call("image_in", image_in(image, planes[0].plane, [p.plane for p in planes[1:]]), threads)
    for plane, expected in zip(planes, reference.image_in(image, height, width, 3), strict=True):
        plane.check()
        # Sums of four numbers up to 1: two roundings a level.
        np.testing.assert_allclose(plane.pixels, expected, rtol=0, atol=8 * 2.0**-24)
    np.testing.assert_array_equal(planes[0].pixels, to_network(image, 8))


def test_large_frames_are_shared_among_threads(call, guards, rng):
    image = frame(guards, rng, 131, 301)
    height, width = padded_size(131, 301, 4)
    results = []
    for threads in (1, 2):
        planes = [picture(guards, (1, 3, height >> n, width >> n)) for n in range(3)]
        call("image_in", image_in(image, planes[0].plane, [p.plane for p in planes[1:]]), threads)
        back, count = guards.empty(image.shape, np.uint8), guards.empty((1,), np.int64)
        call("image_out", image_out(planes[0].plane, back, count), threads)
        np.testing.assert_array_equal(back, image)
        assert count == 0
        results.append(planes)
    for one, two in zip(*results, strict=True):
        one.check()
        np.testing.assert_array_equal(one.pixels, two.pixels)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_becomes_what_core_makes_of_it(call, guards, rng, size, dtype):
    values = rng.uniform(-1.2, 1.2, (1, 3, size[0] + 2, size[1] + 5))
    # A third lies halfway between two levels, or a unit of the last place beside it.
    halves = np.float32((rng.integers(-3, 260, values.shape) + 0.5) / 127.5 - 1)
    beside = np.nextafter(halves, rng.choice([-9.0, 0.0, 9.0], values.shape).astype(np.float32))
    values = np.where(rng.random(values.shape) < 1 / 3, beside, values)
    values[0, 0, 0, :3] = [np.inf, -np.inf, -0.0]
    x = picture(guards, values, dtype)
    image = guards.empty((size[0], size[1] + 1, 3), np.uint8)
    count = guards.empty((1,), np.int64)
    call("image_out", image_out(x.plane, image[:, :-1], count))
    assert count == 0
    assert (image[:, -1] == 255).all(), "a gap was written"
    exact = x.values.astype(np.float32)
    np.testing.assert_array_equal(image[:, :-1], from_network(exact, *size))
    np.testing.assert_array_equal(image[:, :-1], reference.image_out(exact, *size))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_not_a_number_is_counted_and_black(call, guards, rng, threads):
    values = rng.uniform(-1, 1, (1, 3, 200, 200)).astype(np.float32)
    broken = rng.random(values.shape) < 0.1
    values[broken] = np.nan
    x, image = picture(guards, values), guards.empty((199, 197, 3), np.uint8)
    count = guards.empty((1,), np.int64)
    call("image_out", image_out(x.plane, image, count), threads)
    assert count == broken[0, :, :199, :197].sum()
    assert (image[broken[0, :, :199, :197].transpose(1, 2, 0)] == 0).all()
    np.testing.assert_array_equal(image, reference.image_out(values, 199, 197))


def test_bfloat16_rounds_as_the_kernels_do(call, guards):
    """What the other tests take for granted: 1 + 2^-9 is nearer to 1, 1 + 3 * 2^-9 is not."""
    bits = to_bf16(np.float32([1 + 2.0**-9, 1 + 3 * 2.0**-9, -1.5]))
    np.testing.assert_array_equal(bits, [0x3F80, 0x3F81, 0xBFC0])


def plane(height: int, width: int, dtype: str = "f32", channels: int = 3) -> PlaneArgs:
    return PlaneArgs.at(64, (1, channels, height, width), (0, height * width, width, 1), dtype)


def test_what_does_not_fit_is_refused():
    image, count = np.zeros((5, 6, 3), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(ArrayError, match=r"image_in: image must be uint8 .* got float32"):
        image_in(image.astype(np.float32), plane(8, 8))  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match="image_in: the rows of image must be contiguous"):
        image_in(image[:, ::2], plane(8, 8))
    with pytest.raises(ArrayError, match=r"image_in: y must be 5x6 or larger, got .* 8x5"):
        image_in(image, plane(8, 5))
    with pytest.raises(ArrayError, match="image_in: y must be float32, got type 1"):
        image_in(image, plane(8, 8, "bf16"))
    with pytest.raises(ArrayError, match=r"image_in: level 1 must be 4x4, got .* 4x2"):
        image_in(image, plane(8, 8), [plane(4, 2)])
    with pytest.raises(ArrayError, match="image_in: the sides of y can be halved up to 6 times"):
        image_in(image, plane(6, 8), [plane(3, 4), plane(2, 2)])
    with pytest.raises(ArrayError, match="image_out: x must have 3 channels, got 4"):
        image_out(plane(8, 8, channels=4), image, count)
    with pytest.raises(ArrayError, match=r"image_out: x must be 5x6 or larger, got .* 4x8"):
        image_out(plane(4, 8), image, count)
    with pytest.raises(ArrayError, match="image_out: not_numbers must be one int64, got int32"):
        image_out(plane(8, 8), image, np.zeros(1, np.int32))  # type: ignore[arg-type]
