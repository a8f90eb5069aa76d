from __future__ import annotations

import math

import numpy as np
import pytest

from edgeadapt.errors import ImageError
from edgeadapt.runtime.quality import measure


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ssim_by_the_formula(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. (2004), equation 13, for one channel; windows that lie inside the image."""
    at = np.arange(-5, 6)
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x = np.lib.stride_tricks.sliding_window_view(first.astype(float), (11, 11))
    y = np.lib.stride_tricks.sliding_window_view(second.astype(float), (11, 11))

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * window).sum(axis=(2, 3))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def test_ssim_is_that_of_its_paper() -> None:
    first = noise(17, 23, 0)
    second = np.clip(first.astype(int) + noise(17, 23, 1) // 8, 0, 255).astype(np.uint8)
    expected = np.mean([ssim_by_the_formula(first[..., c], second[..., c]) for c in range(3)])
    ssim = measure(first, second).ssim
    assert ssim is not None
    assert math.isclose(ssim, float(expected), rel_tol=1e-9)
    assert ssim < 0.999


def test_psnr_is_that_of_all_samples() -> None:
    first, second = noise(5, 7, 0), noise(5, 7, 1)
    error = np.mean((first.astype(float) - second) ** 2)
    assert math.isclose(measure(first, second).psnr, 10 * math.log10(255**2 / error))


def test_equal_and_small_images() -> None:
    assert measure(noise(12, 12, 0), noise(12, 12, 0)).psnr == math.inf
    assert measure(noise(10, 40, 0), noise(10, 40, 1)).ssim is None


def test_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match="the reference is 4x3, its image 4x2"):
        measure(noise(2, 4, 0), noise(3, 4, 0))
