"""What several CUDA kernels ask of their images, as edgeadapt.kernels.checks does on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.tensors import DTYPES, ImageArgs

FLOATS = (DTYPES["f32"], DTYPES["f16"], DTYPES["bf16"])


def check_images(kernel: str, images: Mapping[str, ImageArgs], channels: int) -> None:
    """Raise an `ArrayError` unless all hold floating-point numbers in ``channels`` channels."""
    for name, image in images.items():
        if image.dtype not in FLOATS:
            raise ArrayError(
                f"{kernel}: {name} must be float32, float16 or bfloat16, got type {image.dtype}."
            )
        if min(image.channels, image.height, image.width) < 1:
            raise ArrayError(f"{kernel}: {name} must have pixels, got {size_of(image)}.")
        if image.channels != channels:
            raise ArrayError(
                f"{kernel}: {name} must have {channels} channels, got {image.channels}."
            )


def check_size(kernel: str, name: str, image: ImageArgs, height: int, width: int) -> None:
    """Raise an `ArrayError` unless ``image`` has this size."""
    if (image.height, image.width) != (height, width):
        raise ArrayError(f"{kernel}: {name} must be {height}x{width}, got {size_of(image)}.")


def size_of(image: ImageArgs) -> str:
    """For messages."""
    return f"{image.channels} channels of {image.height}x{image.width}"
