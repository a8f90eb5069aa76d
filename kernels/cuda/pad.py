"""Padding of tensors and its adjoint on CUDA devices: csrc/pad.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import DTYPES, TensorArgs
from edgeadapt.kernels.pad import MODES, check_pads
from edgeadapt.kernels.tensors import MAX_RANK

THREADS = 256
MAX_SIDE = 2**30  # kernels count in int32, twice as far
_BYTES = {DTYPES["f32"]: 4, DTYPES["bf16"]: 2, DTYPES["bool"]: 1, DTYPES["f16"]: 2}
_Longs = ctypes.c_int64 * MAX_RANK


class PadArgs(ctypes.Structure):
    """Of the kernels "pad_1" to "pad_16", which move units of so many bytes."""

    _fields_ = (
        ("x", TensorArgs),
        ("y", TensorArgs),
        ("begins", _Longs),
        ("mode", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("value", ctypes.c_int64 * 2),
    )


class PadGradArgs(ctypes.Structure):
    """Of the kernel "pad_grad"."""

    _fields_ = (
        ("grad_y", TensorArgs),
        ("y", TensorArgs),
        ("begins", _Longs),
        ("mode", ctypes.c_int64),
        ("count", ctypes.c_int64),
    )


def pad(
    x: TensorArgs,
    y: TensorArgs,
    *,
    pads: Sequence[int],
    mode: str = "constant",
    value: float = 0.0,
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``, which is ``x`` with ``pads`` at its ends, with ``=``.

    ``pads`` are what is added at the beginning of every axis, then at the end of every axis; a
    negative one cuts off. "constant" adds ``value``, "reflect" what lies behind the edge (up to one
    less than the size), "edge" the edge. Any type, the same for both; any strides. No ``scratch``
    is needed.

    Raises:
        ArrayError: if the sizes or types do not fit together, or are too large to be counted in 32
            bits.
    """
    check_pads("pad", ("x", _shape(x)), ("y", _shape(y)), pads, mode)
    if x.dtype != y.dtype:
        raise ArrayError(f"pad: y must have x's type {x.dtype}, got {y.dtype}.")
    axes = _axes(x, y, pads)
    at_once = _elements_at_once(x, y, axes)
    unit = at_once * _BYTES[y.dtype]
    last = axes[-1]
    if at_once > 1:
        axes = [axis.divided(at_once) for axis in axes[:-1]]
        axes.append(last._replace(inner=last.inner // at_once, outer=last.outer // at_once))
    count = _count("pad", axes)
    filling = _bits(value, y.dtype) * (16 // _BYTES[y.dtype])
    inner, outer, begins = _descriptors(x, y, axes)
    bits = (ctypes.c_int64 * 2).from_buffer_copy(filling)
    args = PadArgs(inner, outer, begins, MODES[mode], count, bits)
    return _work(f"pad_{unit}", count, args)


def pad_grad(
    grad_y: TensorArgs,
    y: TensorArgs,
    *,
    pads: Sequence[int],
    mode: str,
    scratch: int = 0,
) -> Work:
    """Launches that write ``y``, the adjoint of `pad` at ``grad_y``, with ``=``.

    ``mode`` is "reflect" or "edge", no pad is negative, each tensor is float32, float16 or
    bfloat16.

    Raises:
        ArrayError: if the sizes or types do not fit together, or are too large to be counted in 32
            bits.
    """
    if mode == "constant":
        raise ArrayError("pad_grad: mode must be reflect or edge: of a constant it is a slice.")
    check_pads("pad_grad", ("y", _shape(y)), ("grad_y", _shape(grad_y)), pads, mode)
    if min(pads) < 0:
        raise ArrayError(f"pad_grad: pads must not be negative, got {tuple(pads)}.")
    if DTYPES["bool"] in (grad_y.dtype, y.dtype):
        raise ArrayError("pad_grad: grad_y and y must be float32, float16 or bfloat16, got bool.")
    axes = _axes(y, grad_y, pads, order_of_inner=True)
    _count("pad_grad", axes)
    inner, outer, begins = _descriptors(y, grad_y, axes)
    count = prod(axis.inner for axis in axes)
    return _work("pad_grad", count, PadGradArgs(outer, inner, begins, MODES[mode], count))


class _Axis(NamedTuple):
    """An axis of the small tensor and of the large one that is padded from it."""

    inner: int  # lengths
    outer: int
    inner_stride: int
    outer_stride: int
    begin: int

    def divided(self, by: int) -> _Axis:
        """With strides in units of ``by`` elements."""
        strides = self.inner_stride // by, self.outer_stride // by
        return self._replace(inner_stride=strides[0], outer_stride=strides[1])


def _axes(
    inner: TensorArgs, outer: TensorArgs, pads: Sequence[int], order_of_inner: bool = False
) -> list[_Axis]:
    """Those that are longer than 1, what is written in the order in which it lies in memory."""
    rank = inner.rank
    fields = (inner.shape, outer.shape, inner.strides, outer.strides, pads)
    axes = [
        _Axis(*(field[axis] for field in fields))
        for axis in range(rank)
        if (inner.shape[axis], outer.shape[axis], pads[axis]) != (1, 1, 0)
    ]
    axes.sort(key=lambda axis: -abs(axis.inner_stride if order_of_inner else axis.outer_stride))
    return axes or [_Axis(1, 1, 1, 1, 0)]


def _elements_at_once(x: TensorArgs, y: TensorArgs, axes: Sequence[_Axis]) -> int:
    """Neighbours that can be moved as one: 16 bytes, or less if they do not lie so everywhere."""
    *others, last = axes
    if (last.inner, last.begin) != (last.outer, 0) or last.inner_stride != 1:
        return 1
    if last.outer_stride != 1:
        return 1
    strides = [s for axis in others for s in (axis.inner_stride, axis.outer_stride)]
    for nbytes in (16, 8, 4, 2):
        count = nbytes // _BYTES[y.dtype]
        aligned = all((tensor.data or 0) % nbytes == 0 for tensor in (x, y))
        if count > 1 and aligned and all(n % count == 0 for n in (last.inner, *strides)):
            return count
    return 1


def _bits(value: float, dtype: int) -> bytes:
    """An element of the type; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        if dtype == DTYPES["bool"]:
            return np.uint8(value != 0).tobytes()
        if dtype == DTYPES["f16"]:
            return np.float16(np.float32(value)).tobytes()
        number = np.float32(value)
    if dtype == DTYPES["f32"]:
        return number.tobytes()
    bits = int(number.view(np.uint32))
    rounded = (bits | 0x400000) if np.isnan(number) else bits + 0x7FFF + (bits >> 16 & 1)
    return np.uint16(rounded >> 16).tobytes()


def _count(kernel: str, axes: Sequence[_Axis]) -> int:
    """Elements of the larger tensor."""
    count = prod(axis.outer for axis in axes)
    if count >= 2**31 or max(max(axis.inner, axis.outer) for axis in axes) >= MAX_SIDE:
        raise ArrayError(
            f"{kernel}: a tensor must be below 2**31 elements and 2**30 along each axis, got "
            f"{tuple(axis.inner for axis in axes)} to {tuple(axis.outer for axis in axes)}."
        )
    return count


def _descriptors(
    inner: TensorArgs, outer: TensorArgs, axes: Sequence[_Axis]
) -> tuple[TensorArgs, TensorArgs, ctypes.Array[ctypes.c_int64]]:
    """Both tensors and the begins, with as many axes of length 1 in front as are missing."""
    front = [_Axis(1, 1, 0, 0, 0)] * (MAX_RANK - len(axes))
    shapes = [_Longs(*column) for column in zip(*front, *axes, strict=True)]
    small = TensorArgs(inner.data, inner.dtype, MAX_RANK, shapes[0], shapes[2])
    large = TensorArgs(outer.data, outer.dtype, MAX_RANK, shapes[1], shapes[3])
    return small, large, shapes[4]


def _work(kernel: str, count: int, args: ctypes.Structure) -> Work:
    return Work((Launch(kernel, (-(-count // THREADS), 1, 1), (THREADS, 1, 1), args),))


def _shape(tensor: TensorArgs) -> tuple[int, ...]:
    return tuple(tensor.shape[: tensor.rank])
