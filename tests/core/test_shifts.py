from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve

from edgeadapt.blur import Pair
from edgeadapt.errors import ArrayError, ConfigError
from edgeadapt.shifts import (
    READ_NOISE,
    SHAKE_PX,
    SHIFTS,
    SHOT_NOISE,
    convolve_light,
    disc,
    shake_kernel,
    shift_pair,
)
from edgeadapt.testing import photo, psnr


@pytest.fixture
def pair() -> Pair:
    """Two different pictures of odd size: a shift that takes the wrong one shows."""
    return Pair(photo(1, 45, 62), photo(2, 45, 62))


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_depends_on_the_name_of_the_image_only(name: str, pair: Pair) -> None:
    before = pair.blurred.copy(), pair.sharp.copy()
    first, again = shift_pair(name, pair, "a/0"), shift_pair(name, pair, "a/0")
    assert np.array_equal(first.blurred, again.blurred)
    assert np.array_equal(first.sharp, again.sharp)
    other = shift_pair(name, pair, "a/1")
    random = name in ("stronger", "shake", "noise")
    assert np.array_equal(first.blurred, other.blurred) is not random
    assert np.array_equal(pair.blurred, before[0])
    assert np.array_equal(pair.sharp, before[1])
    for image in first:
        assert image.dtype == np.uint8
        assert image.shape == ((22, 31, 3) if name == "half" else (45, 62, 3))


def test_what_a_shift_does_not_touch_stays(pair: Pair) -> None:
    shifted = {name: shift_pair(name, pair, "x") for name in SHIFTS}
    assert shifted["none"] == pair
    for name in ("defocus", "shake", "noise", "jpeg30"):
        assert np.array_equal(shifted[name].sharp, pair.sharp)
    # These start from the sharp image, so nothing of the blurred one may be left.
    for name in ("stronger", "defocus", "shake"):
        other = shift_pair(name, Pair(photo(3, 45, 62), pair.sharp), "x")
        assert np.array_equal(shifted[name].blurred, other.blurred)
        assert psnr(shifted[name].blurred, shifted[name].sharp) < 40


@pytest.mark.parametrize(("name", "exponent"), [("gamma0.7", 0.7), ("gamma1.5", 1.5)])
def test_gamma_applies_to_both_images(name: str, exponent: float, pair: Pair) -> None:
    for image, shifted in zip(pair, shift_pair(name, pair, "x"), strict=True):
        expected = 255 * (image / 255.0) ** exponent
        assert np.abs(shifted - expected).max() <= 0.5 + 1e-9  # rounded once


def test_half_resolution_is_the_mean_of_four_in_both_images(pair: Pair) -> None:
    for image, shifted in zip(pair, shift_pair("half", pair, "x"), strict=True):
        whole = image[:44, :62].astype(np.float64)
        mean = (whole[::2, ::2] + whole[1::2, ::2] + whole[::2, 1::2] + whole[1::2, 1::2]) / 4
        assert np.abs(shifted - mean).max() <= 0.5


def test_jpeg_is_that_of_quality_30(pair: Pair) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pair.blurred).save(buffer, "JPEG", quality=30)  # 4:2:0 is Pillow's default
    assert np.array_equal(shift_pair("jpeg30", pair, "x").blurred, np.array(Image.open(buffer)))


def test_noise_has_the_variance_of_its_light() -> None:
    level = 160
    flat = np.full((200, 300, 3), level, np.uint8)
    noisy = shift_pair("noise", Pair(flat, flat), "x").blurred
    light = (noisy / 255.0) ** 2.2
    expected = (level / 255) ** 2.2
    deviation = math.sqrt(SHOT_NOISE * expected + READ_NOISE**2)
    # 180,000 samples: their mean and deviation err by 1/424 and 1/600 of the deviation; rounding to
    # levels, a step of 0.005 in this light against a deviation of 0.039, adds 0.2 % to the latter.
    assert abs(light.mean() - expected) < 5 * deviation / 424
    assert abs(light.std() / deviation - 1) < 0.015
    other = shift_pair("noise", Pair(flat, flat), "y").blurred.astype(float)
    assert abs(np.corrcoef(noisy.ravel().astype(float) - level, other.ravel() - level)[0, 1]) < 0.02


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.5, 4.0])
def test_a_disc_has_the_area_of_a_circle(radius: float) -> None:
    kernel = disc(radius)
    assert kernel.sum() == pytest.approx(1)
    assert np.array_equal(kernel, kernel.T)
    assert np.array_equal(kernel, kernel[::-1, ::-1])
    # A full pixel weighs one part in the circle's area; the edge is cut in 64 parts a pixel.
    assert 1 / kernel.max() == pytest.approx(max(1.0, math.pi * radius**2), rel=0.05)
    reach = kernel.shape[0] // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    assert not kernel[np.hypot(y, x) > radius + math.sqrt(0.5)].any()


@pytest.mark.parametrize("seed", range(8))
def test_a_shake_is_a_path_of_its_length_about_the_middle(seed: int) -> None:
    extent = float(np.random.default_rng(seed).uniform(*SHAKE_PX))
    kernel = shake_kernel(np.random.default_rng(seed), extent)
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1)
    assert kernel.min() >= 0
    middle = kernel.shape[0] // 2
    spans = []
    for axis in (0, 1):
        line = kernel.sum(axis=axis)
        # Bilinear weights keep the mean of the path, which lies in the middle.
        assert line @ np.arange(len(line)) == pytest.approx(middle, abs=1e-9)
        spans.append(np.ptp(np.flatnonzero(line)))
    assert extent - 1 <= max(spans) <= extent + 2  # each end falls on one pixel or two


def test_convolution_is_that_of_scipy_in_light() -> None:
    frame = photo(5, 33, 40)
    kernel = np.random.default_rng(5).random((7, 7))  # no symmetry: a flipped one would show
    kernel /= kernel.sum()
    light = (frame / 255.0) ** 2.2
    # Its "reflect" repeats the edge, which numpy calls symmetric.
    exact = np.stack([convolve(light[..., c], kernel, mode="reflect") for c in range(3)], axis=-1)
    expected = 255 * exact ** (1 / 2.2)
    assert np.abs(convolve_light(frame, kernel) - expected).max() <= 0.5 + 1e-6


def test_a_kernel_of_one_pixel_changes_nothing() -> None:
    frame = photo(6, 5, 9)
    assert np.array_equal(convolve_light(frame, np.ones((1, 1))), frame)


def test_refusals(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="there is no shift 'fog'") as error:
        shift_pair("fog", pair, "x")
    assert "jpeg30" in error.value.hint
    with pytest.raises(ArrayError, match="both images must have one size"):
        shift_pair("none", Pair(pair.blurred, pair.sharp[1:]), "x")
