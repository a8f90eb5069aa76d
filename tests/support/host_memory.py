"""Device memory made of host memory, and what may be done with an address in it.

Memory starts as NaN and is surrounded by guards; what was given back is not handed out again soon,
so that an old address is found out.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.kernels.tensors import MAX_RANK
from edgeadapt.runtime.cuda.device import ALIGNMENT, Span

Array = npt.NDArray[Any]
PATTERN = 0xFF  # in every byte: NaN as float32, float16 and bfloat16
GUARD = 1024  # bytes on both sides: more than a warp's widest store
QUARANTINE = 64 << 20  # bytes given back that are kept
ITEM_BYTES = (4, 2, 1, 2)  # by `Dtype` of csrc/device.cuh


class MisuseError(AssertionError):
    """A device was asked for what no device allows, or what this program must not ask."""


class Use(NamedTuple):
    """Memory that an operation is told about."""

    name: str  # of the argument
    span: Span
    alignment: int = 1


class Block(NamedTuple):
    """One allocation, guards and all."""

    memory: npt.NDArray[np.uint8]
    start: int
    size: int


class Memory:
    """Allocations, their guards, and page-locked arrays that kernels reach as well."""

    def __init__(self) -> None:
        self.live: dict[int, Block] = {}
        self.mapped: dict[int, int] = {}  # address -> bytes, of unified memory
        self._freed: deque[Block] = deque()

    def allocate(self, nbytes: int) -> int:
        """Address of new memory, all NaN."""
        memory = np.full(nbytes + 2 * GUARD + ALIGNMENT, PATTERN, np.uint8)
        address = int(memory.ctypes.data) + GUARD
        address += -address % ALIGNMENT
        self.live[address] = Block(memory, address, nbytes)
        return address

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self.check_guards("free")
        block = self.live.pop(address, None)
        if block is None:
            was = any(old.start == address for old in self._freed)
            raise MisuseError(
                f"free: {address:#x} was {'freed before' if was else 'not allocated'}"
            )
        block.memory[...] = PATTERN
        self._freed.append(block)
        while sum(old.size for old in self._freed) > QUARANTINE:
            self._freed.popleft()

    @property
    def used_bytes(self) -> int:
        """Bytes in all allocations."""
        return sum(block.size for block in self.live.values())

    def check(self, operation: str, uses: Iterable[Use]) -> None:
        """Fail unless all that an operation uses lies whole in one piece of memory each."""
        for use in uses:
            (address, nbytes), name = use.span, use.name
            if address % use.alignment:
                raise MisuseError(
                    f"{operation}: {name} at {address:#x} is not {use.alignment}-aligned"
                )
            spans = [(block.start, block.size) for block in self.live.values()]
            spans += self.mapped.items()
            if any(a <= address and address + nbytes <= a + n for a, n in spans):
                continue
            raise MisuseError(
                f"{operation}: {name} at {address:#x}, {nbytes} bytes, {self._where(address)}"
            )

    def check_guards(self, operation: str) -> None:
        """Fail if anything was written beside an allocation."""
        for block in self.live.values():
            begin = block.start - int(block.memory.ctypes.data)
            for side, guard in (
                ("before", block.memory[:begin]),
                ("behind", block.memory[begin + block.size :]),
            ):
                if (guard != PATTERN).any():
                    guard[...] = PATTERN
                    raise MisuseError(
                        f"{operation} wrote {side} an allocation of {block.size} bytes"
                    )

    def _where(self, address: int) -> str:
        for text, blocks in (("", self.live.values()), ("freed ", self._freed)):
            for block in blocks:
                if block.start <= address < block.start + block.size:
                    offset = address - block.start
                    return f"begins {offset} bytes into {text}memory of {block.size}"
        return "is in no memory of this device"


def uses_of(arguments: ctypes.Structure, path: str = "") -> Iterator[Use]:
    """What the pointers in a kernel's arguments point to; of a plain one, its first byte."""
    for field, kind, *_ in arguments._fields_:  # type: ignore[misc]
        value, name = getattr(arguments, field), f"{path}{field}"
        if isinstance(value, ctypes.Array):
            for i, item in enumerate(value):
                yield from _uses(item, kind._type_, f"{name}[{i}]")
        else:
            yield from _uses(value, kind, name)


def _uses(value: Any, kind: Any, name: str) -> Iterator[Use]:
    if isinstance(value, TensorArgs | ImageArgs):
        yield from _tensor(name, value)
    elif isinstance(value, ctypes.Structure):
        yield from uses_of(value, f"{name}.")
    elif kind is ctypes.c_void_p and value:
        yield Use(name, (int(value), 1))


def _tensor(name: str, tensor: TensorArgs | ImageArgs) -> Iterator[Use]:
    if not tensor.data:
        return
    if isinstance(tensor, ImageArgs):
        shape: Sequence[int] = tensor.shape[1:]
        strides = (tensor.channel_stride, tensor.row_stride, tensor.pixel_stride)
    else:
        if not 0 <= tensor.rank <= MAX_RANK:
            raise MisuseError(f"{name} has {tensor.rank} axes")
        shape, strides = tensor.shape[: tensor.rank], tensor.strides[: tensor.rank]
    if not 0 <= tensor.dtype < len(ITEM_BYTES) or min(shape, default=1) < 1:
        raise MisuseError(f"{name} has dtype {tensor.dtype} and shape {tuple(shape)}")
    item = ITEM_BYTES[tensor.dtype]
    reach = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    low, high = sum(min(0, far) for far in reach), sum(max(0, far) for far in reach)
    yield Use(name, (tensor.data + low * item, (high - low + 1) * item), item)
