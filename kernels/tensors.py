"""How kernels are told about tensors: `Tensor` and `Plane` of csrc/tensor.h.

None of these keeps memory alive; who makes a call does. What GPUs' kernels are told derives from
the same classes: edgeadapt.kernels.cuda.tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError

Array = npt.NDArray[Any]
MAX_RANK: Final = 6
F32: Final = 0
BF16: Final = 1
BOOL: Final = 2
DTYPES: Final = {"f32": F32, "bf16": BF16, "bool": BOOL}


@dataclass(frozen=True)
class Elements:
    """The types of elements that some kernels know."""

    codes: Mapping[str, int]
    of_numpy: Mapping[np.dtype[Any], str]
    floats: str  # those that hold numbers with a fraction, for messages
    arrays: str  # what numpy calls all of them, for messages

    def code(self, dtype: str) -> int:
        """The number that kernels know a type by."""
        if dtype not in self.codes:
            raise ArrayError(f"an element must be one of {', '.join(self.codes)}, got {dtype!r}.")
        return self.codes[dtype]

    def name(self, array: Array) -> str:
        """The type of an array's elements."""
        found = self.of_numpy.get(array.dtype)
        if found is None:
            raise ArrayError(f"an array must be {self.arrays}, got {array.dtype}.")
        return found

    def is_float(self, code: int) -> bool:
        """Whether this type holds numbers with a fraction."""
        return code != self.codes["bool"] and code in self.codes.values()


# numpy has no bfloat16: its bits are held as uint16.
ELEMENTS: Final = Elements(
    DTYPES,
    {np.dtype(np.float32): "f32", np.dtype(np.uint16): "bf16", np.dtype(bool): "bool"},
    "float32 or bfloat16",
    "float32, uint16 (bfloat16) or bool",
)
_Tensor = TypeVar("_Tensor", bound="TensorArgs")
_Image = TypeVar("_Image", bound="ImageBase")


class TensorArgs(ctypes.Structure):
    """A tensor of up to six axes with any strides, or none at all: ``TensorArgs()``."""

    elements: ClassVar[Elements] = ELEMENTS
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    )

    @classmethod
    def at(
        cls: type[_Tensor], address: int, shape: Sequence[int], strides: Sequence[int], dtype: str
    ) -> _Tensor:
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
        code = cls.elements.code(dtype)
        return cls(address, code, len(shape), longs(*shape), longs(*strides))

    @classmethod
    def of(cls: type[_Tensor], array: Array) -> _Tensor:
        """The tensor that ``array`` is, of one of ``elements``; bfloat16 bits as uint16.

        Raises:
            ArrayError: if it is something else, or lies at fractions of elements.
        """
        return cls.at(array.ctypes.data, array.shape, _strides(array), cls.elements.name(array))


IMAGE_FIELDS: Final = (
    ("data", ctypes.c_void_p),
    ("dtype", ctypes.c_int64),
    ("channels", ctypes.c_int64),
    ("height", ctypes.c_int64),
    ("width", ctypes.c_int64),
    ("channel_stride", ctypes.c_int64),
    ("row_stride", ctypes.c_int64),
)


class ImageBase(ctypes.Structure):
    """What all kernels are told about an image (1, C, H, W): at least `IMAGE_FIELDS`."""

    elements: ClassVar[Elements] = ELEMENTS

    @classmethod
    def at(
        cls: type[_Image], address: int, shape: Sequence[int], strides: Sequence[int], dtype: str
    ) -> _Image:
        """The image whose pixel (0, 0, 0, 0) is at ``address``; strides count elements.

        Raises:
            ArrayError: if it is not one image, or not as these kernels take it.
        """
        if len(shape) != 4 or len(strides) != 4 or shape[0] != 1:
            raise ArrayError(f"an image must be (1, C, H, W), got shape {tuple(shape)}.")
        return cls(address, cls.elements.code(dtype), *shape[1:], *cls._held(shape, strides))

    @classmethod
    def of(cls: type[_Image], array: Array) -> _Image:
        """The image that ``array`` is, of one of ``elements``; bfloat16 bits as uint16.

        Raises:
            ArrayError: as `at`, or if the type is something else.
        """
        return cls.at(array.ctypes.data, array.shape, _strides(array), cls.elements.name(array))

    @classmethod
    def _held(cls, shape: Sequence[int], strides: Sequence[int]) -> Sequence[int]:
        """The strides that are fields, of (C, H, W)."""
        raise NotImplementedError


class PlaneArgs(ImageBase):
    """An image (1, C, H, W) whose rows are contiguous, or none at all: ``PlaneArgs()``."""

    _fields_ = IMAGE_FIELDS

    @classmethod
    def _held(cls, shape: Sequence[int], strides: Sequence[int]) -> Sequence[int]:
        if shape[3] > 1 and strides[3] != 1:
            raise ArrayError(
                f"an image's rows must be contiguous, got strides {tuple(strides)} in elements."
            )
        return strides[1:3]


def _strides(array: Array) -> tuple[int, ...]:
    """In elements."""
    if any(stride % array.itemsize for stride in array.strides):
        raise ArrayError(f"strides {array.strides} are no multiples of {array.itemsize} bytes.")
    return tuple(stride // array.itemsize for stride in array.strides)
