"""The ruler itself: wrong gradients must be refused, each for the reason it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from edgeadapt.errors import ArrayError
from edgeadapt.testing import (
    assert_gradient_close,
    central_difference,
    compare_gradients,
    noise,
    photo,
    psnr,
)

SHAPE = (3, 5, 7)


@pytest.fixture
def gradient():
    # Spread over four decades, as the elements of a real gradient are.
    random = np.random.default_rng(7)
    return random.standard_normal(SHAPE) * 10.0 ** random.uniform(-4, 0, SHAPE)


def test_a_gradient_rounded_to_float32_is_close(gradient):
    # Half a unit in the last place of float32 is 6e-8 of each element, so of the norm too.
    assert_gradient_close(gradient.astype(np.float32), gradient, relative=6e-8)


WRONG = {
    "flipped sign": lambda g: -g,
    "zero": np.zeros_like,
    "ten percent off": lambda g: 1.1 * g,
    "one part in ten thousand off": lambda g: 1.0001 * g,
    "a small constant added": lambda g: g + 1e-4 * np.abs(g).max(),
    "noise of a thousandth": lambda g: (
        g + 1e-3 * np.abs(g).max() * np.random.default_rng(1).standard_normal(g.shape)
    ),
    "reversed": lambda g: g[::-1, ::-1, ::-1],
    "two axes swapped": lambda g: g.reshape(3, 7, 5).swapaxes(1, 2),
    "rolled by one": lambda g: np.roll(g, 1, axis=2),
    "largest element zeroed": lambda g: np.where(np.abs(g) == np.abs(g).max(), 0, g),
    "a NaN": lambda g: np.where(np.arange(g.size).reshape(g.shape) == 11, np.nan, g),
    "an infinity": lambda g: np.where(np.arange(g.size).reshape(g.shape) == 11, np.inf, g),
    "transposed": lambda g: g.T,
    "flattened": lambda g: g.ravel(),
    "one that would broadcast": lambda g: g[:1],
    "empty": lambda g: g[:0],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_gradient_is_refused(gradient, wrong):
    with pytest.raises(AssertionError, match=r"^conv1\.weight: "):
        assert_gradient_close(wrong(gradient), gradient, name="conv1.weight")


def test_the_bound_is_the_bound(gradient):
    error = np.random.default_rng(2).standard_normal(SHAPE)
    error *= np.linalg.norm(gradient) / np.linalg.norm(error)
    # Just inside and just outside of 1e-3; 1 % of margin is far above rounding.
    assert_gradient_close(gradient + 0.99e-3 * error, gradient, relative=1e-3)
    with pytest.raises(AssertionError, match=r"the bound is 1\.0e-03"):
        assert_gradient_close(gradient + 1.01e-3 * error, gradient, relative=1e-3)


def test_only_zero_is_close_to_zero():
    zero = np.zeros((2, 3))
    assert_gradient_close(zero, zero)
    report = compare_gradients(zero, zero)
    assert (report.relative_l2, report.cosine, report.worst_error) == (0.0, 1.0, 0.0)
    assert compare_gradients(zero + 1e-30, zero).relative_l2 == np.inf
    assert compare_gradients(zero, zero + 1e-30).relative_l2 == 1.0
    for actual, expected in [(zero + 1e-30, zero), (zero, zero + 1e-30)]:
        assert compare_gradients(actual, expected).cosine == 0.0
        with pytest.raises(AssertionError):
            assert_gradient_close(actual, expected)


def test_a_nan_in_the_expected_gradient_is_refused(gradient):
    # NaN compares unequal to itself, so a test that compares NaN with NaN must not pass by luck.
    gradient[1, 2, 3] = np.nan
    with pytest.raises(AssertionError, match=r"worst element \(1, 2, 3\).*NOT FINITE"):
        assert_gradient_close(gradient, gradient)
    assert not compare_gradients(np.zeros(SHAPE), gradient).finite
    assert not compare_gradients(gradient, np.zeros(SHAPE)).finite


def test_the_cosine_tells_direction_from_scale(gradient):
    # The square root of a square and back: a few roundings of 1.1e-16.
    for factor, cosine in [(-1, -1.0), (1.1, 1.0), (1e-20, 1.0)]:
        report = compare_gradients(factor * gradient, gradient)
        assert report.cosine == pytest.approx(cosine, abs=1e-14)


def test_the_report_is_what_the_formulas_say(gradient):
    actual = gradient + 0.01 * np.random.default_rng(3).standard_normal(SHAPE)
    actual[2, 0, 4] += 5
    report = compare_gradients(actual, gradient)
    difference = actual - gradient
    cosine = np.vdot(actual, gradient) / (np.linalg.norm(actual) * np.linalg.norm(gradient))
    # float64 sums of 105 terms: 105 * 1.1e-16 < 1.2e-14.
    assert report.relative_l2 == pytest.approx(
        np.linalg.norm(difference) / np.linalg.norm(gradient), rel=1.2e-14
    )
    assert report.cosine == pytest.approx(cosine, rel=1.2e-14)
    assert report.worst_index == (2, 0, 4)
    assert report.worst_error == np.abs(difference).max()
    assert report.finite
    assert "(2, 0, 4)" in str(report)


def test_a_scalar_and_an_empty_gradient_are_compared():
    assert compare_gradients(2.0, 1.0).relative_l2 == 1.0
    assert compare_gradients(np.zeros((0, 3)), np.zeros((0, 3))).cosine == 1.0


def test_the_central_difference_is_the_derivative():
    random = np.random.default_rng(4)
    x, matrix = random.standard_normal((3, 4)), random.standard_normal((4, 2))
    cotangent = random.standard_normal((3, 2))
    actual = central_difference(lambda value: np.sin(value) @ matrix, x, cotangent)
    expected = (cotangent @ matrix.T) * np.cos(x)
    # step^2 / 6 = 2e-11 from the third derivative; 1e-16 / 1e-5 = 1e-11 from rounding.
    assert_gradient_close(actual, expected, relative=1e-9)


def test_the_central_difference_refuses_what_it_cannot_do():
    with pytest.raises(ArrayError, match="x must be float64, got float32"):
        central_difference(np.sin, np.zeros(2, np.float32), np.ones(2))
    with pytest.raises(ArrayError, match=r"cotangent must be \(2,\), got \(1,\)"):
        central_difference(np.sin, np.zeros(2), np.ones(1))


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_a_photo_of_any_size_is_an_image_and_depends_on_its_seed_only(seed, height, width):
    picture = photo(seed, height, width)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, photo(seed, height, width))


def test_noise_has_every_level_and_no_neighbours_alike():
    picture = noise(3, 64, 48)
    assert (picture.shape, picture.dtype) == ((64, 48, 3), np.uint8)
    np.testing.assert_array_equal(picture, noise(3, 64, 48))
    assert not np.array_equal(picture, noise(4, 64, 48))
    assert len(np.unique(picture)) == 256
    pixels = picture.astype(np.float64)
    # 9,216 values: a correlation by chance stays below 0.05 in all but one of a million cases
    for one, other in ((pixels[1:], pixels[:-1]), (pixels[:, 1:], pixels[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


def test_a_photo_looks_like_one():
    picture = photo(0, 129, 200).astype(np.float64)
    assert (picture != photo(1, 129, 200)).mean() > 0.5
    assert 30 < picture.std() < 100
    assert 60 < picture.mean() < 200
    # Highlights and shadows saturate: the two end values gather what lies beyond them.
    levels = np.bincount(picture.astype(int).ravel(), minlength=256)
    assert levels[0] + levels[255] > 3 * (levels[1] + levels[254])
    # Amplitudes of 1/f fall to a tenth over this decade. Those of white noise do not fall, those of
    # a picture without detail (1/f^2) fall to a hundredth.
    amplitude = np.abs(np.fft.fft2(picture.mean(axis=-1) - picture.mean()))
    frequency = np.hypot(np.fft.fftfreq(129)[:, None], np.fft.fftfreq(200)[None, :])
    low = amplitude[(frequency > 0.02) & (frequency < 0.04)].mean()
    high = amplitude[(frequency > 0.2) & (frequency < 0.4)].mean()
    assert 1 / 30 < high / low < 1 / 3
    neighbours = np.corrcoef(picture[:, 1:].ravel(), picture[:, :-1].ravel())[0, 1]
    assert neighbours > 0.8  # white noise: 0


def test_a_photo_without_pixels_is_refused():
    with pytest.raises(ArrayError, match="at least 1, got 0x5"):
        photo(0, 0, 5)


def test_psnr_is_that_of_scikit_image():
    image, reference = photo(2, 31, 45), photo(3, 31, 45)
    # Both are float64 means of the same 4185 squares: n * eps < 1e-12.
    expected = peak_signal_noise_ratio(reference, image, data_range=255)
    assert psnr(image, reference) == pytest.approx(expected, rel=1e-12)
    floats = (image / 255.0, reference / 255.0)
    assert psnr(*floats, peak=1.0) == pytest.approx(expected, rel=1e-12)
    assert psnr(image, image) == float("inf")
    with pytest.raises(ArrayError, match="psnr: image must be"):
        psnr(image[:1], reference)
