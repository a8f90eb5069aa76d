"""Values from one tensor into another one, or one value everywhere."""

from __future__ import annotations

import ctypes
from math import prod

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import TensorArgs

THREADS = 256


class CopyArgs(ctypes.Structure):
    """`CopyArgs` of csrc/copy.cu."""

    _fields_ = (("x", TensorArgs), ("y", TensorArgs))


class FillArgs(ctypes.Structure):
    """`FillArgs` of csrc/copy.cu."""

    _fields_ = (("y", TensorArgs), ("value", ctypes.c_double))


def copy(x: TensorArgs, y: TensorArgs, *, scratch: int = 0) -> Work:
    """y = x, written with =; any types, any strides, no memory in common.

    Raises:
        ArrayError: if the shapes differ.
    """
    del scratch
    if _shape(x) != _shape(y):
        raise ArrayError(f"copy: y must be {_shape(x)} as x, got {_shape(y)}.")
    return _each("copy", y, CopyArgs(x, y))


def fill(y: TensorArgs, value: float, *, scratch: int = 0) -> Work:
    """y = ``value`` everywhere, written with =; any type, any strides."""
    del scratch
    return _each("fill", y, FillArgs(y, value))


def _each(kernel: str, y: TensorArgs, arguments: ctypes.Structure) -> Work:
    """One thread for each element of y."""
    blocks = -(-prod(_shape(y)) // THREADS)
    if blocks == 0:
        return Work(())
    return Work((Launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), arguments),))


def _shape(tensor: TensorArgs) -> tuple[int, ...]:
    return tuple(tensor.shape[: tensor.rank])
