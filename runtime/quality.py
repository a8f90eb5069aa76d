"""PSNR, and SSIM by scikit-image, against a sharp reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import EdgeadaptError, ImageError
from edgeadapt.testing import psnr

U8 = npt.NDArray[np.uint8]

_SSIM_WINDOW = 11  # pixels, what a Gaussian of sigma 1.5 cut at 3.5 sigma covers (Wang et al. 2004)


@dataclass(frozen=True)
class Quality:
    """How near an image is to its reference, on 8-bit RGB."""

    psnr: float  # dB; infinite for equal images
    ssim: float | None  # None for an image smaller than the window


def check_installed() -> None:
    """Raise an `EdgeadaptError` unless scikit-image is there."""
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise EdgeadaptError(
            "PSNR and SSIM need scikit-image, which is not installed.",
            "pip install 'edgeadapt[demo]'",
        ) from error


def measure(image: U8, reference: U8) -> Quality:
    """PSNR over all samples, and SSIM with the window of Wang et al. (2004), channels averaged.

    Raises:
        ImageError: if the sizes differ.
    """
    from skimage.metrics import structural_similarity

    if image.shape != reference.shape:
        raise ImageError(
            f"the reference is {_size(reference)}, its image {_size(image)}.",
            "a reference must have the size of its image.",
        )
    ratio = psnr(image, reference)
    if min(image.shape[:2]) < _SSIM_WINDOW:
        return Quality(ratio, None)
    ssim = structural_similarity(
        reference,
        image,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return Quality(ratio, float(ssim))


def _size(image: U8) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
