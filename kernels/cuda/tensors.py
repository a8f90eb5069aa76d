"""How CUDA kernels are told about tensors: `Tensor` and `Image` of csrc/device.cuh."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np

from edgeadapt.kernels import tensors
from edgeadapt.kernels.tensors import IMAGE_FIELDS, Elements, ImageBase

DTYPES: Final = {**tensors.DTYPES, "f16": 3}  # `Dtype` of csrc/device.cuh
ELEMENTS: Final = Elements(
    DTYPES,
    {**tensors.ELEMENTS.of_numpy, np.dtype(np.float16): "f16"},
    "float32, float16 or bfloat16",
    "float32, float16, uint16 (bfloat16) or bool",
)


class TensorArgs(tensors.TensorArgs):
    """A tensor of up to six axes with any strides, or none at all: ``TensorArgs()``."""

    elements: ClassVar[Elements] = ELEMENTS


class ImageArgs(ImageBase):
    """An image (1, C, H, W) with any strides, or none at all: ``ImageArgs()``."""

    elements: ClassVar[Elements] = ELEMENTS
    _fields_ = (*IMAGE_FIELDS, ("pixel_stride", ctypes.c_int64))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(1, C, H, W)."""
        return (1, self.channels, self.height, self.width)

    @classmethod
    def _held(cls, shape: Sequence[int], strides: Sequence[int]) -> Sequence[int]:
        return strides[1:]
