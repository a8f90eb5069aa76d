"""What several kernels ask of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import ImageBase


def check_images(kernel: str, images: Mapping[str, ImageBase], channels: int) -> None:
    """Raise an `ArrayError` unless all hold floating-point numbers in ``channels`` channels."""
    for name, image in images.items():
        check_pixels(kernel, name, image)
        if image.channels != channels:
            raise ArrayError(
                f"{kernel}: {name} must have {channels} channels, got {image.channels}."
            )


def check_pixels(kernel: str, name: str, image: ImageBase) -> None:
    """Raise an `ArrayError` unless there are pixels, of a type that these kernels compute with."""
    if not image.elements.is_float(image.dtype):
        raise ArrayError(
            f"{kernel}: {name} must be {image.elements.floats}, got type {image.dtype}."
        )
    if min(image.channels, image.height, image.width) < 1:
        raise ArrayError(f"{kernel}: {name} must have pixels, got {size_of(image)}.")


def check_sources(
    kernel: str, x: Sequence[ImageBase], most: int, other: str, image: ImageBase
) -> int:
    """Raise an `ArrayError` unless ``x`` are 1 to ``most`` images of one size, and all have pixels.

    ``image`` is another operand, called ``other``. Returns the channels of ``x``, all together.
    """
    if not 1 <= len(x) <= most:
        raise ArrayError(f"{kernel}: x must be 1 to {most} images, got {len(x)}.")
    for one in x:
        check_pixels(kernel, "x", one)
    check_pixels(kernel, other, image)
    sizes = sorted({(one.height, one.width) for one in x})
    if len(sizes) > 1:
        raise ArrayError(f"{kernel}: the images x must have one size, got {sizes}.")
    return sum(one.channels for one in x)


def check_size(kernel: str, name: str, image: ImageBase, height: int, width: int) -> None:
    """Raise an `ArrayError` unless ``image`` has this size."""
    if (image.height, image.width) != (height, width):
        raise ArrayError(f"{kernel}: {name} must be {height}x{width}, got {size_of(image)}.")


def check_positive(kernel: str, values: Mapping[str, Sequence[int]]) -> None:
    """Raise an `ArrayError` unless each is a pair of positive numbers."""
    for name, pair in values.items():
        if len(pair) != 2 or min(pair) < 1:
            raise ArrayError(f"{kernel}: {name} must be two positive numbers, got {tuple(pair)}.")


def size_of(image: ImageBase) -> str:
    """For messages."""
    return f"{image.channels} channels of {image.height}x{image.width}"
