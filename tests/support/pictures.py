"""Images for tests of kernels: float32 or bfloat16, in the middle of memory that is watched."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.tensors import PlaneArgs
from support.guarded import PATTERN, Guards

Array = npt.NDArray[Any]
# Rounding to nearest: half a unit of the last place, relative to the value.
HALF_UNIT = {"f32": 2.0**-24, "bf16": 2.0**-8}


class Picture(NamedTuple):
    """An image (1, C, H, W) that is a part of a larger array, so that rows and planes have gaps."""

    pixels: Array
    whole: Array
    dtype: str

    @property
    def plane(self) -> PlaneArgs:
        """What a kernel is told."""
        return PlaneArgs.of(self.pixels)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The pixels, of either type."""
        return np.float64(from_bf16(self.pixels) if self.dtype == "bf16" else self.pixels)

    def check(self) -> None:
        """Fail if a gap was written, or a pixel was not."""
        assert not np.isnan(self.values).any()
        around = np.ones(self.whole.shape, bool)
        height, width = self.pixels.shape[2:]
        around[:, :, :height, 1 : width + 1] = False
        assert (self.whole[around].view(np.uint8) == PATTERN).all(), "a gap was written"


def picture(guards: Guards, content: Array | tuple[int, ...], dtype: str = "f32") -> Picture:
    """An image with these values, or of this shape with nothing but NaN."""
    shape = content if isinstance(content, tuple) else content.shape
    larger = (*shape[:2], shape[2] + 1, shape[3] + 4)
    whole = guards.empty(larger, np.float32 if dtype == "f32" else np.uint16, offset=1)
    pixels = whole[:, :, : shape[2], 1 : shape[3] + 1]
    if not isinstance(content, tuple):
        pixels[...] = content if dtype == "f32" else to_bf16(content)
    return Picture(pixels, whole, dtype)


def to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """Numbers as bits of bfloat16, rounded to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> npt.NDArray[np.float32]:
    """The numbers that bits of bfloat16 are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def check_close(actual: Picture, expected: Array, magnitude: Array, roundings: int) -> None:
    """Fail unless ``actual`` is ``expected`` but for so many float32 roundings and its own type's.

    ``magnitude`` is what the result would be if nothing cancelled: sums round relative to it.
    """
    actual.check()
    allowed = roundings * HALF_UNIT["f32"] * magnitude + HALF_UNIT[actual.dtype] * abs(expected)
    error = abs(actual.values - expected)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), f"{worst}: off by {error[worst]}, allowed {allowed[worst]}"
