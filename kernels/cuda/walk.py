"""How kernels walk over all elements of tensors of one shape: the structures of csrc/walk.cuh."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from edgeadapt.kernels.cuda.tensors import DTYPES, ImageArgs, TensorArgs
from edgeadapt.kernels.tensors import MAX_RANK

CHUNK = 4  # elements along the last axis that a thread takes at once
BYTES = {DTYPES["f32"]: 4, DTYPES["bf16"]: 2, DTYPES["bool"]: 1, DTYPES["f16"]: 2}
Longs = ctypes.c_int64 * MAX_RANK
_NARROW = 2**31  # numbers from here on are divided as 64-bit integers


class AxesArgs(ctypes.Structure):
    """`Axes`: a shape, and for each length what replaces a division by it."""

    _fields_ = (
        ("rank", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("wide", ctypes.c_int64),
        ("shape", Longs),
        ("multiplier", Longs),
        ("shift", Longs),
    )

    @classmethod
    def of(cls, shape: Sequence[int]) -> AxesArgs:
        """The axes of a shape, slowest first; without any there is one element."""
        parts = [reciprocal(length) if length < _NARROW else (0, 0) for length in shape]
        multipliers, shifts = [part[0] for part in parts], [part[1] for part in parts]
        count = prod(shape)
        lengths = Longs(*shape), Longs(*multipliers), Longs(*shifts)
        return cls(len(shape), count, count >= _NARROW, *lengths)


class ChunksArgs(ctypes.Structure):
    """`Chunks`: axes of which the last counts chunks, and its length in elements."""

    _fields_ = (("axes", AxesArgs), ("length", ctypes.c_int64))


class OperandArgs(ctypes.Structure):
    """`Operand`: a tensor that is walked over in chunks, or none at all."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("vector", ctypes.c_int64),
        ("strides", Longs),
    )


class Merged(NamedTuple):
    """Axes that at least one of several tensors tells apart, slowest first."""

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]  # of each tensor


def merge_axes(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> Merged:
    """Put axes into the order in which the first tensor lies in memory, and merge neighbours.

    ``strides`` are those of each tensor, in elements. Axes of length 1 disappear.
    """
    order = sorted(
        (axis for axis, length in enumerate(shape) if length > 1),
        key=lambda axis: -abs(strides[0][axis]),
    )
    lengths: list[int] = []
    steps: list[tuple[int, ...]] = []
    for axis in order:
        step = tuple(of_tensor[axis] for of_tensor in strides)
        if steps and all(
            slow == fast * shape[axis] for slow, fast in zip(steps[-1], step, strict=True)
        ):
            lengths[-1] *= shape[axis]
            steps[-1] = step
        else:
            lengths.append(shape[axis])
            steps.append(step)
    return Merged(tuple(lengths), tuple(tuple(of[t] for of in steps) for t in range(len(strides))))


def in_chunks(tensors: Sequence[TensorArgs]) -> tuple[ChunksArgs, list[OperandArgs]]:
    """The walk over tensors of one shape in the order of the first, and their operands."""
    first = tensors[0]
    merged = merge_axes(first.shape[: first.rank], [t.strides[: t.rank] for t in tensors])
    shape = merged.shape or (1,)
    axes = AxesArgs.of((*shape[:-1], -(-shape[-1] // CHUNK)))
    operands = [
        _operand(tensor, strides or (1,))
        for tensor, strides in zip(tensors, merged.strides, strict=True)
    ]
    return ChunksArgs(axes, shape[-1]), operands


def image_tensor(image: ImageArgs) -> TensorArgs:
    """An image (1, C, H, W) as a tensor (C, H, W)."""
    shape = (image.channels, image.height, image.width)
    strides = (image.channel_stride, image.row_stride, image.pixel_stride)
    return TensorArgs(image.data, image.dtype, 3, Longs(*shape), Longs(*strides))


def reciprocal(divisor: int) -> tuple[int, int]:
    """(m, s) such that n // divisor = ((n * m >> 32) + n) >> s for every n from 0 to 2^31 - 1.

    For a positive divisor below 2^31. With s = ceil(log2(divisor)), 2^32 + m is 2^(32 + s) /
    divisor and at most 1 more: an error of n / 2^32 before the shift, too little to reach the next
    whole number.
    """
    shift = (divisor - 1).bit_length()
    return (2**32 * (2**shift - divisor)) // divisor + 1, shift


def _operand(tensor: TensorArgs, strides: Sequence[int]) -> OperandArgs:
    """A thread's chunk is one load if every chunk begins at a multiple of its size."""
    *outer, step = strides
    bytes_of_chunk = CHUNK * BYTES[tensor.dtype]
    vector = (
        step == 1
        and (tensor.data or 0) % bytes_of_chunk == 0
        and all(stride % CHUNK == 0 for stride in outer)
    )
    return OperandArgs(tensor.data, tensor.dtype, step, vector, Longs(*outer, CHUNK * step))
