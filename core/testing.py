"""What tests and benchmarks share: comparing gradients, differentiating by hand, seeded photos.

It ships with the package, so that `edgeadapt check` and a stranger's exporter measure a gradient
the way our tests do. Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GradientReport:
    """How far one gradient is from another, taken as vectors.

    A bound on each element lets a small error through that all elements share; the norm of the
    difference does not.
    """

    relative_l2: float  # |actual - expected| / |expected|; infinite if only `expected` is zero
    cosine: float  # of the angle between them: direction apart from length; both zero: 1, one: 0
    worst_error: float  # largest |actual - expected| of one element
    worst_index: tuple[int, ...]  # where that is
    finite: bool  # no NaN or infinity in either

    def __str__(self) -> str:
        return (
            f"relative L2 {self.relative_l2:.2e}, cosine {self.cosine:.12f}, "
            f"worst element {self.worst_index} off by {self.worst_error:.2e}"
            + ("" if self.finite else ", NOT FINITE")
        )


def compare_gradients(actual: npt.ArrayLike, expected: npt.ArrayLike) -> GradientReport:
    """Compare two gradients of one shape, in float64.

    With a NaN or an infinity in either, all figures are NaN and the index is of the first such.

    Raises:
        ArrayError: if the shapes differ; nothing is broadcast.
    """
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise ArrayError(f"compare_gradients: actual must be {b.shape}, got {a.shape}.")
    good = np.isfinite(a) & np.isfinite(b)
    if not good.all():
        return GradientReport(np.nan, np.nan, np.nan, _index(np.argmin(good), a.shape), False)
    error = np.abs(a - b)
    norm_a, norm_b, norm_error = _norm(a), _norm(b), _norm(error)
    both = norm_a > 0 and norm_b > 0
    worst = int(np.argmax(error)) if error.size else 0
    return GradientReport(
        relative_l2=norm_error / norm_b if norm_b else (0.0 if norm_error == 0 else np.inf),
        cosine=_dot(a / norm_a, b / norm_b) if both else float(norm_a == norm_b),
        worst_error=float(error.max(initial=0.0)),
        worst_index=_index(worst, a.shape) if error.size else (),
        finite=True,
    )


def assert_gradient_close(
    actual: npt.ArrayLike, expected: npt.ArrayLike, relative: float = 1e-5, name: str = ""
) -> None:
    """Fail unless ``actual`` is ``expected`` within ``relative`` in the L2 norm.

    A zero gradient is close to a zero gradient only. The bound on the norm bounds the cosine too,
    by sqrt(1 - relative^2); the report has it because it tells a wrong direction from a wrong
    scale.

    Raises:
        AssertionError: with the report; also if the shapes differ or a value is not finite.
    """
    label = f"{name}: " if name else ""
    try:
        report = compare_gradients(actual, expected)
    except ArrayError as error:
        raise AssertionError(f"{label}{error}") from error
    if not report.relative_l2 <= relative:  # a NaN is not
        raise AssertionError(f"{label}{report}; the bound is {relative:.1e}.")


def central_difference(
    function: Callable[[F64], npt.ArrayLike],
    x: F64,
    cotangent: npt.ArrayLike,
    step: float = 1e-5,
) -> F64:
    """d <function(x), cotangent> / dx, one element at a time; the shape is that of ``x``.

    The error is of the order step^2 times the third derivative plus 1e-16 / step times the value:
    about 1e-10 for values and derivatives near 1. ``function`` must be smooth within ``step``.

    Raises:
        ArrayError: if ``x`` is not float64, in which the difference would drown in rounding.
    """
    if x.dtype != np.float64:
        raise ArrayError(f"central_difference: x must be float64, got {x.dtype}.")
    weights = np.asarray(cotangent, np.float64)
    gradient = np.empty_like(x, order="C")
    for index in np.ndindex(x.shape):
        values = []
        for sign in (1.0, -1.0):
            moved = x.copy()
            moved[index] += sign * step
            values.append(np.asarray(function(moved), np.float64))
        if values[0].shape != weights.shape:
            raise ArrayError(
                f"central_difference: cotangent must be {values[0].shape}, got {weights.shape}."
            )
        gradient[index] = _dot(values[0] - values[1], weights) / (2 * step)
    return gradient


def photo(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture with the statistics of a photograph: (height, width, 3) uint8 RGB, any size from 1.

    Amplitudes fall as 1/f, as they do in natural images (Field 1987), the three colours vary
    mostly together, and shapes with hard edges lie on top. The same arguments give the same bytes
    with the same numpy.

    Raises:
        ArrayError: if a side is below 1.
    """
    if height < 1 or width < 1:
        raise ArrayError(f"photo: height and width must be at least 1, got {height}x{width}.")
    random = np.random.default_rng([seed, height, width])
    brightness = _one_over_f(random, height, width)
    colours = [brightness + 0.3 * _one_over_f(random, height, width) for _ in range(3)]
    picture = 0.5 + 0.18 * np.stack(colours, axis=-1)
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(6):
        inside = _shape(random, y / height, x / width)
        picture[inside] = 0.35 * picture[inside] + 0.65 * random.random(3)
    pixels: npt.NDArray[np.uint8] = np.rint(255 * picture.clip(0, 1)).astype(np.uint8)
    return pixels


def noise(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture without any likeness between neighbours: (height, width, 3) uint8 RGB.

    No network rebuilds it, so the signs that the gradient of an L1 loss is made of are far from
    where rounding decides them: what compares engines, above all in half precision, needs that.
    """
    random = np.random.default_rng([seed, height, width])
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def psnr(image: npt.NDArray[Any], reference: npt.NDArray[Any], peak: float = 255.0) -> float:
    """10 log10(peak^2 / mean squared error) in dB, in float64; infinite for equal images.

    Raises:
        ArrayError: if the shapes differ.
    """
    if image.shape != reference.shape:
        raise ArrayError(f"psnr: image must be {reference.shape}, got {image.shape}.")
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float(10 * np.log10(peak**2 / error)) if error else float("inf")


def _one_over_f(random: np.random.Generator, height: int, width: int) -> F64:
    """Noise (height, width) with a 1/f amplitude spectrum, of zero mean and unit deviation."""
    spectrum = np.fft.rfft2(random.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum / frequency, s=(height, width))
    return noise / max(float(noise.std()), 1e-12)  # a single pixel has no deviation


def _shape(random: np.random.Generator, y: F64, x: F64) -> npt.NDArray[np.bool_]:
    """Where a random turned ellipse or rectangle lies; ``y`` and ``x`` run from 0 to 1."""
    centre_y, centre_x = random.random(2)
    angle, box = random.uniform(0, np.pi), random.random() < 0.5
    half_u, half_v = random.uniform(0.05, 0.3, 2)
    u = (np.cos(angle) * (x - centre_x) + np.sin(angle) * (y - centre_y)) / half_u
    v = (np.cos(angle) * (y - centre_y) - np.sin(angle) * (x - centre_x)) / half_v
    distance: F64 = np.maximum(abs(u), abs(v)) if box else u**2 + v**2
    return distance < 1


def _norm(a: F64) -> float:
    return float(np.sqrt(_dot(a, a)))


def _dot(a: F64, b: F64) -> float:
    return float(np.sum(a * b))  # pairwise summation, which a BLAS dot product is not


def _index(flat: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
