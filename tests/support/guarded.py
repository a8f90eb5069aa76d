"""Memory that notices who writes outside of an array, or reads what nobody wrote.

Arrays start as NaN, and so is the memory before and behind them: `check` finds what wrote there, a
NaN in the result tells of a read. With AddressSanitizer, touching it is an error at once.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

GUARD = 512  # bytes on both sides: more than the widest store
PATTERN = 0xFF  # 0xffffffff is NaN as float32, 0xffff as bfloat16
_PROCESS = ctypes.CDLL(None)
_SANITIZED = hasattr(_PROCESS, "__asan_poison_memory_region")


class Block(NamedTuple):
    """One piece of memory, guards and all."""

    memory: npt.NDArray[np.uint8]
    begin: int  # of the part that may be used
    size: int

    @property
    def start(self) -> int:
        """Address of the part that may be used."""
        return self.memory.ctypes.data + self.begin


class Guards:
    """Makes arrays and watches the memory around them."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def empty(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32, offset: int = 0
    ) -> npt.NDArray[Any]:
        """An array of NaN (0xff in every byte) that begins ``offset`` elements behind a multiple of
        64 bytes."""
        kind = np.dtype(dtype)
        size = prod(shape) * kind.itemsize
        memory = np.full(size + offset * kind.itemsize + 2 * GUARD + 64, PATTERN, np.uint8)
        begin = GUARD + -(memory.ctypes.data + GUARD) % 64 + offset * kind.itemsize
        block = Block(memory, begin, size)
        self.blocks.append(block)
        _poison(block, True)
        return memory[begin : begin + size].view(kind).reshape(shape)

    def copy(self, values: npt.NDArray[Any], offset: int = 0) -> npt.NDArray[Any]:
        """A contiguous array with the type and values of ``values``."""
        result = self.empty(values.shape, values.dtype, offset)
        result[...] = values
        return result

    def check(self) -> None:
        """Fail if anything wrote outside of the arrays."""
        self.unwatch()
        for block in self.blocks:
            before = block.memory[: block.begin]
            behind = block.memory[block.begin + block.size :]
            wrong = [f"{len(before) - i} bytes before" for i in np.flatnonzero(before != PATTERN)]
            wrong += [f"{i} bytes behind" for i in np.flatnonzero(behind != PATTERN)]
            assert not wrong, f"written {', '.join(wrong[:4])} an array of {block.size} bytes"
            _poison(block, True)

    def unwatch(self) -> None:
        """Let the memory around the arrays be touched, until the next `check`."""
        for block in self.blocks:
            _poison(block, False)

    def close(self) -> None:
        """Give the memory back."""
        self.unwatch()
        self.blocks.clear()


def _poison(block: Block, on: bool) -> None:
    if not _SANITIZED:
        return
    function = getattr(_PROCESS, f"__asan_{'' if on else 'un'}poison_memory_region")
    base, end = block.memory.ctypes.data, block.begin + block.size
    for first, last in ((0, block.begin), (end, block.memory.size)):
        function(ctypes.c_void_p(base + first), ctypes.c_size_t(last - first))
