"""How CUDA kernels are told about tensors: `Tensor` and `Image` of csrc/device.cuh.

Neither keeps memory alive; who launches a kernel does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import MAX_RANK

Array = npt.NDArray[Any]
DTYPES: Final = {"f32": 0, "bf16": 1, "bool": 2, "f16": 3}  # `Dtype` of csrc/device.cuh
# numpy has no bfloat16: its bits are held as uint16.
_OF_NUMPY: Final = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(np.uint16): "bf16",
    np.dtype(bool): "bool",
}


class TensorArgs(ctypes.Structure):
    """A tensor of up to six axes with any strides, or none at all: ``TensorArgs()``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    )

    @classmethod
    def at(
        cls, address: int, shape: Sequence[int], strides: Sequence[int], dtype: str
    ) -> TensorArgs:
        """The tensor whose element (0, ..., 0) is at ``address``; strides count elements.

        Raises:
            ArrayError: if it has more than six axes or a type that kernels do not know.
        """
        if len(shape) > MAX_RANK or len(strides) != len(shape):
            raise ArrayError(
                f"a tensor has up to {MAX_RANK} axes and a stride for each, got shape "
                f"{tuple(shape)} and strides {tuple(strides)}."
            )
        longs = ctypes.c_int64 * MAX_RANK
        return cls(address, _code(dtype), len(shape), longs(*shape), longs(*strides))

    @classmethod
    def of(cls, array: Array) -> TensorArgs:
        """The tensor that ``array`` is: float32, float16, bfloat16 bits as uint16, or bool.

        Raises:
            ArrayError: if it is something else, or lies at fractions of elements.
        """
        return cls.at(array.ctypes.data, array.shape, _strides(array), _name(array))


class ImageArgs(ctypes.Structure):
    """An image (1, C, H, W) with any strides, or none at all: ``ImageArgs()``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("pixel_stride", ctypes.c_int64),
    )

    @classmethod
    def at(
        cls, address: int, shape: Sequence[int], strides: Sequence[int], dtype: str
    ) -> ImageArgs:
        """The image whose element (0, 0, 0, 0) is at ``address``; strides count elements.

        Raises:
            ArrayError: if it is not one image, or of a type that kernels do not know.
        """
        if len(shape) != 4 or len(strides) != 4 or shape[0] != 1:
            raise ArrayError(f"an image must be (1, C, H, W), got shape {tuple(shape)}.")
        return cls(address, _code(dtype), *shape[1:], *strides[1:])

    @classmethod
    def of(cls, array: Array) -> ImageArgs:
        """The image that ``array`` is: float32, float16, bfloat16 bits as uint16, or bool.

        Raises:
            ArrayError: as `at`, or if it is something else.
        """
        return cls.at(array.ctypes.data, array.shape, _strides(array), _name(array))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(1, C, H, W)."""
        return (1, self.channels, self.height, self.width)


def _code(dtype: str) -> int:
    if dtype not in DTYPES:
        raise ArrayError(f"an element must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    return DTYPES[dtype]


def _name(array: Array) -> str:
    found = _OF_NUMPY.get(array.dtype)
    if found is None:
        raise ArrayError(
            f"an array must be float32, float16, uint16 (bfloat16) or bool, got {array.dtype}."
        )
    return found


def _strides(array: Array) -> tuple[int, ...]:
    """In elements."""
    if any(stride % array.itemsize for stride in array.strides):
        raise ArrayError(f"strides {array.strides} are no multiples of {array.itemsize} bytes.")
    return tuple(stride // array.itemsize for stride in array.strides)
