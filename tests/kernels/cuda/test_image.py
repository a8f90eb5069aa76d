"""Frames to network images and back on CUDA devices: csrc/image.cu."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.image import from_network, padded_size, to_network
from edgeadapt.kernels.cuda.image import FrameArgs, image_in, image_out
from edgeadapt.kernels.cuda.pool import avg_pool
from edgeadapt.kernels.cuda.tensors import ImageArgs
from edgeadapt.kernels.reference import image as reference
from support.strided import fill, wide

# One pixel; one row, one column; smaller than what is added; a tile, one more than a tile.
SIZES = [(1, 1), (1, 5), (3, 1), (2, 3), (9, 16), (32, 32), (33, 70)]
LAYOUTS = ["nhwc", "nchw", "strided"]
TYPES = ["f32", "f16", "bf16"]


@pytest.fixture
def frame(guards, rng):
    """Make a part of a larger frame, ``offset`` bytes behind a multiple of 64."""

    def make(height: int, width: int, gap: int = 2, offset: int = 0) -> np.ndarray:
        whole = guards.empty((height, width + gap, 3), np.uint8, offset)
        whole[...] = rng.integers(0, 256, whole.shape)
        return whole[:, :width]

    return make


def stored(values, dtype):
    """What an image of the type holds."""
    kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[dtype]
    found = np.empty(values.shape, kind)
    fill(found, values)
    return found


def describe_in(image, y, levels=(), scratch=0):
    images = [ImageArgs.of(level) for level in levels]
    return image_in(FrameArgs.of(image), ImageArgs.of(y), images, scratch=scratch)


def describe_out(x, image, count, scratch=0):
    return image_out(ImageArgs.of(x), FrameArgs.of(image), count.ctypes.data, scratch=scratch)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_frame_becomes_what_core_makes_of_it(size, multiple, aligned, run, guarded, frame):
    gap = -size[1] % 4 if aligned else 1 - size[1] % 2
    image = frame(*size, gap, 0 if aligned else 1)
    expected = to_network(image, multiple)
    for layout, dtype in itertools.product(LAYOUTS, TYPES):
        y = guarded(expected.shape, layout, dtype)
        run(lambda scratch, y=y: describe_in(image, y, (), scratch))
        np.testing.assert_array_equal(y, stored(expected, dtype))


def test_every_level_has_its_float(run, guarded, guards):
    values = np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(1, 256, 3)
    image, y = guards.copy(values), guarded((1, 3, 1, 256))
    run(lambda scratch: describe_in(image, y, (), scratch))
    assert len(np.unique(y)) == 256
    np.testing.assert_array_equal(y, to_network(image, 1))
    back, count = guards.empty(image.shape, np.uint8), guards.empty((1,), np.int64)
    run(lambda scratch: describe_out(y, back, count, scratch))
    np.testing.assert_array_equal(back, image)
    assert count == 0


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("types", ["f32 f32 f32 f32", "f16 f16 f16 f16", "f32 bf16 f16 f32"])
def test_levels_are_means_of_four_as_avg_pool_makes_them(size, types, run, guarded, frame):
    image, kinds = frame(*size), types.split()
    height, width = padded_size(*size, 8)
    exact = reference.image_in(image, height, width, 3)
    for layout in LAYOUTS:
        images = [guarded(e.shape, layout, kind) for e, kind in zip(exact, kinds, strict=True)]
        run(lambda scratch, images=images: describe_in(image, images[0], images[1:], scratch))
        np.testing.assert_array_equal(images[0], stored(to_network(image, 8), kinds[0]))
        for x, y, level in zip(images, images[1:], exact[1:], strict=False):
            window = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
            pooled = guarded(y.shape, layout, dtype_of(y))
            arguments = ImageArgs.of(x), ImageArgs.of(pooled)
            run(lambda scratch, args=arguments, w=window: avg_pool(*args, **w, scratch=scratch))
            np.testing.assert_array_equal(y, pooled)
            if types == "f32 f32 f32 f32":  # sums of numbers up to 1: three roundings a level
                np.testing.assert_allclose(y, level, rtol=0, atol=9 * 2.0**-24)


def dtype_of(array):
    return {"float32": "f32", "float16": "f16", "uint16": "bf16"}[array.dtype.name]


def test_six_levels_take_a_second_launch(run, guarded, frame):
    image = frame(50, 65)
    exact = reference.image_in(image, 64, 128, 6)
    images = [guarded(e.shape) for e in exact]
    work = describe_in(image, images[0], images[1:])
    assert [launch.kernel for launch in work.launches] == ["image_in", "image_half"]
    run(lambda scratch: describe_in(image, images[0], images[1:], scratch))
    for found, expected in zip(images, exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=18 * 2.0**-24)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_an_image_becomes_what_core_makes_of_it(size, aligned, dtype, run, guarded, frame, rng):
    values = rng.uniform(-1.2, 1.2, (1, 3, size[0] + 2, size[1] + 5))
    # A third lies halfway between two levels, or a unit of the last place beside it.
    halves = np.float32((rng.integers(-3, 260, values.shape) + 0.5) / 127.5 - 1)
    beside = np.nextafter(halves, rng.choice([-9.0, 0.0, 9.0], values.shape).astype(np.float32))
    values = np.where(rng.random(values.shape) < 1 / 3, beside, values)
    values[0, 0, 0, :3] = [np.inf, -np.inf, -0.0]
    for layout in LAYOUTS:
        x = guarded(values.shape, layout, dtype, values)
        whole = frame(size[0], size[1] + (-size[1] % 4 or 4 if aligned else 1), 0, not aligned)
        image, before = whole[:, : size[1]], whole[:, size[1] :].copy()
        count = guarded((1, 2)).view(np.int64)
        run(lambda scratch, x=x, i=image, c=count: describe_out(x, i, c, scratch))
        assert count == 0
        np.testing.assert_array_equal(whole[:, size[1] :], before)
        exact = wide(x).astype(np.float32)
        np.testing.assert_array_equal(image, from_network(exact, *size))
        np.testing.assert_array_equal(image, reference.image_out(exact, *size))


def test_what_is_not_a_number_is_counted_and_black(run, guarded, frame, rng):
    values = rng.uniform(-1, 1, (1, 3, 70, 64)).astype(np.float32)
    broken = rng.random(values.shape) < 0.1
    values[broken] = np.nan
    x, image, count = guarded(values.shape, fill=values), frame(69, 61), guarded((2,))
    count = count.view(np.int64)
    run(lambda scratch: describe_out(x, image, count, scratch))
    assert count == broken[0, :, :69, :61].sum()
    assert (image[broken[0, :, :69, :61].transpose(1, 2, 0)] == 0).all()
    np.testing.assert_array_equal(image, reference.image_out(values, 69, 61))


def described(height: int, width: int, dtype: str = "f32", channels: int = 3) -> ImageArgs:
    return ImageArgs.at(64, (1, channels, height, width), (0, height * width, width, 1), dtype)


def test_what_does_not_fit_is_refused():
    image = np.zeros((5, 6, 3), np.uint8)
    frame = FrameArgs.of(image)
    with pytest.raises(ArrayError, match=r"a frame must be uint8 .* got float32"):
        FrameArgs.of(image.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match="the rows of a frame must be contiguous"):
        FrameArgs.of(image[:, ::2])
    with pytest.raises(ArrayError, match="image_in: frame must have pixels, got 0x6"):
        image_in(FrameArgs.of(image[:0]), described(8, 8))
    with pytest.raises(ArrayError, match="image_out: the rows of frame must not overlap, got 6"):
        image_out(described(8, 8), FrameArgs(64, 5, 6, 17), 64)
    with pytest.raises(ArrayError, match=r"image_in: y must be 5x6 or larger, got .* 8x5"):
        image_in(frame, described(8, 5))
    with pytest.raises(ArrayError, match="image_in: y must be float32, float16 or bfloat16, got"):
        image_in(frame, described(8, 8, "bool"))
    with pytest.raises(ArrayError, match=r"image_in: level 1 must be 4x4, got .* 4x2"):
        image_in(frame, described(8, 8), [described(4, 2)])
    with pytest.raises(ArrayError, match="image_in: the sides of y can be halved up to 6 times"):
        image_in(frame, described(6, 8), [described(3, 4), described(2, 2)])
    with pytest.raises(ArrayError, match="image_out: x must have 3 channels, got 4"):
        image_out(described(8, 8, channels=4), frame, 64)
    with pytest.raises(ArrayError, match=r"image_out: x must be 5x6 or larger, got .* 4x8"):
        image_out(described(4, 8), frame, 64)
    with pytest.raises(ArrayError, match="not_numbers must be the address of an int64, got 0x0"):
        image_out(described(8, 8), frame, 0)
