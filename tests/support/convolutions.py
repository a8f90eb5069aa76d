"""Convolutions as cuDNN is told of them, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeadapt.runtime.cuda.cudnn_conv import Convolution, Layout


def image(channels: int, rows: int, columns: int, dtype: Any = "f32", pitch: int = 0) -> Layout:
    """Pixel by pixel, ``pitch`` elements from one to the next."""
    pitch = pitch or channels
    strides = (rows * columns * pitch, 1, columns * pitch, pitch)
    return Layout((1, channels, rows, columns), strides, dtype)


def plain(dtype: Any = "f32", compute: str = "", **changes: Any) -> Convolution:
    """3x3, stride 1, from 8 to 16 channels."""
    images = {"x": image(8, 6, 5, dtype), "y": image(16, 6, 5, dtype), **changes.pop("images", {})}
    found = Convolution(
        "fprop", compute or dtype, (16, 8, 3, 3), ((1, 1), (1, 1)), (1, 1), (1, 1),
        tuple(images.items()),
    )  # fmt: skip
    return replace(found, **changes)


def weight_grad(dtype: Any = "f32", compute: str = "", **changes: Any) -> Convolution:
    """The gradient of the same in its weight, and in its bias."""
    images = {"x": image(8, 6, 5, dtype), "grad_y": image(16, 6, 5, dtype)}
    images |= changes.pop("images", {})
    found = plain(dtype, compute, kind="wgrad", bias_of="grad_y")
    return replace(found, images=tuple(images.items()), **changes)
