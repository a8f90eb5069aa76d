"""What several kernels ask of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import BF16, F32, PlaneArgs


def check_images(kernel: str, images: Mapping[str, PlaneArgs], channels: int) -> None:
    """Raise an `ArrayError` unless all are float32 or bfloat16 with ``channels`` planes."""
    for name, image in images.items():
        if image.dtype not in (F32, BF16):
            raise ArrayError(
                f"{kernel}: {name} must be float32 or bfloat16, got type {image.dtype}."
            )
        if min(image.channels, image.height, image.width) < 1:
            raise ArrayError(f"{kernel}: {name} must have pixels, got {size_of(image)}.")
        if image.channels != channels:
            raise ArrayError(
                f"{kernel}: {name} must have {channels} channels, got {image.channels}."
            )


def check_size(kernel: str, name: str, image: PlaneArgs, height: int, width: int) -> None:
    """Raise an `ArrayError` unless ``image`` has this size."""
    if (image.height, image.width) != (height, width):
        raise ArrayError(f"{kernel}: {name} must be {height}x{width}, got {size_of(image)}.")


def check_positive(kernel: str, values: Mapping[str, Sequence[int]]) -> None:
    """Raise an `ArrayError` unless each is a pair of positive numbers."""
    for name, pair in values.items():
        if len(pair) != 2 or min(pair) < 1:
            raise ArrayError(f"{kernel}: {name} must be two positive numbers, got {tuple(pair)}.")


def size_of(image: PlaneArgs) -> str:
    """For messages."""
    return f"{image.channels} channels of {image.height}x{image.width}"
