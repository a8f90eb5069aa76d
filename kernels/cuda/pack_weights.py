"""All weights of a step in the orders in which convolutions read them: csrc/pack_weights.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final

import numpy as np

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.segments import THREADS, Table, first_blocks
from edgeadapt.kernels.cuda.tensors import DTYPES

Five = tuple[int, int, int, int, int]
_BYTES: Final = {"f32": 4, "f16": 2, "bf16": 2}
_PADDED_TO: Final = 8  # output channels


class PackWeightsArgs(ctypes.Structure):
    """`PackWeightsArgs` of csrc/pack_weights.cu."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("segments", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


@dataclass(frozen=True)
class PackedWeight:
    """One weight in one order.

    ``weight`` is its first element, counted from the first of all weights, ``y`` where the packed
    one begins, in bytes. ``shape`` is the parameter's: (O, C / group, kh, kw), transposed
    (C, O / group, kh, kw), and ``strides`` its own, in elements; without, its elements lie one
    after another. ``out_channels`` is the first and the count of those wanted of O, all of
    them if there are groups. Orders, of ``dtype`` "f32", "f16" or "bf16":

    "conv"  (group, kh, kw, C / group, O / group), O / group padded with zeros to a multiple of 8
    "krsc"  (O, kh, kw, C / group), transposed (C, kh, kw, O / group), without zeros: cuDNN's

    Raises:
        ArrayError: if a number is out of range.
    """

    weight: int
    y: int
    shape: tuple[int, ...]
    group: int = 1
    transposed: bool = False
    out_channels: tuple[int, int] | None = None
    dtype: str = "f32"
    order: str = "conv"
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or min(*self.shape, self.group) < 1 or self.shape[0] % self.group:
            raise ArrayError(
                f"pack_weights: shape must be a multiple of {self.group} by some channels by a "
                f"kernel, got {self.shape}."
            )
        if self.dtype not in _BYTES or self.order not in ("conv", "krsc"):
            raise ArrayError(
                f"pack_weights: dtype must be one of {', '.join(_BYTES)} and order 'conv' or "
                f"'krsc', got {self.dtype!r} and {self.order!r}."
            )
        first, count = self._wanted
        some = count != self.group * self._outputs
        if first < 0 or count < 1 or first + count > self.group * self._outputs:
            raise ArrayError(
                f"pack_weights: out_channels must lie within {self.group * self._outputs}, got "
                f"{(first, count)}."
            )
        if some and self.group > 1:
            raise ArrayError(
                f"pack_weights: out_channels must be all {self.group * self._outputs} if there are "
                f"groups, got {(first, count)}."
            )
        if self.weight < 0 or self.y < 0 or self.y % _BYTES[self.dtype]:
            raise ArrayError(
                f"pack_weights: weight and y must begin at an element, got {self.weight} and byte "
                f"{self.y}."
            )
        if prod(self.packed_shape) >= 2**31:
            raise ArrayError(
                f"pack_weights: a weight has less than 2^31 elements, got {self.packed_shape}."
            )

    @property
    def _outputs(self) -> int:
        """Of a group."""
        return self.shape[1] if self.transposed else self.shape[0] // self.group

    @property
    def _wanted(self) -> tuple[int, int]:
        return self.out_channels or (0, self.group * self._outputs)

    @property
    def _strides(self) -> tuple[int, ...]:
        contiguous = (prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return self.strides or tuple(contiguous)

    @property
    def packed_shape(self) -> Five:
        """Of what is written: (group, kh, kw, C / group, padded) or (1, K, kh, kw, C of `krsc`)."""
        kh, kw = self.shape[2:]
        count = self._wanted[1]
        if self.order == "conv":
            inputs = self.shape[0] // self.group if self.transposed else self.shape[1]
            padded = -(-count // self.group // _PADDED_TO) * _PADDED_TO
            return self.group, kh, kw, inputs, padded
        if self.transposed:
            return 1, self.shape[0], kh, kw, count // self.group
        return 1, count, kh, kw, self.shape[1]

    @property
    def nbytes(self) -> int:
        """Of what is written."""
        return prod(self.packed_shape) * _BYTES[self.dtype]

    def row(self, first_block: int) -> list[int]:
        """`PackSegment` of csrc/pack_weights.cu."""
        outer, inner, *taps = self._strides
        of_output = inner if self.transposed else outer
        if self.order == "conv":
            of_input = outer if self.transposed else inner
            of_group = self.shape[0] // self.group * outer
            strides = (of_group, *taps, of_input, of_output)
            valid = self._wanted[1] // self.group
        else:
            strides, valid = (0, outer, *taps, inner), self.packed_shape[4]
        source = self.weight + self._wanted[0] * of_output
        places = (first_block, source, self.y, DTYPES[self.dtype])
        return [*places, *self.packed_shape, *strides, valid]


def pack_table(parts: Sequence[PackedWeight]) -> Table:
    """What a launch reads of ``parts``: it depends on no address.

    Raises:
        ArrayError: if two of them are written to the same place.
    """
    begins = sorted((part.y, part.y + part.nbytes) for part in parts)
    for (_, end), (begin, _) in pairwise(begins):
        if end > begin:
            raise ArrayError(f"pack_weights: what ends at byte {end} overlaps what is at {begin}.")
    firsts, blocks = first_blocks(np.array([prod(p.packed_shape) for p in parts], np.int64))
    rows = [part.row(int(first)) for part, first in zip(parts, firsts, strict=True)]
    return Table(np.array(rows, np.int64), blocks)


def pack_weights(weights: int, packed: int, table: Table, table_address: int) -> Work:
    """What writes all packed weights of a table; ``table_address`` is where its rows are.

    ``weights`` and ``packed`` are the addresses from which the table counts: of float32, and of
    memory in which every place that is written is a multiple of its type's bytes.
    """
    if not table.blocks:
        return Work(())
    arguments = PackWeightsArgs(weights, packed, table_address, len(table.rows))
    return Work((Launch("pack_weights", (table.blocks, 1, 1), (THREADS, 1, 1), arguments),))
