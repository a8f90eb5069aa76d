"""What an operation finds in the last-level cache, by what was touched since."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.plan.ir import BYTES, Op, Program

BLOCK = 256 * 2**10  # bytes that are looked at together
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}
_UNKNOWN = 8 * 2**20  # where the machine does not say


def cache_bytes(system: System) -> int:
    """The size of the largest cache of the first core; `_UNKNOWN` if the machine does not say."""
    sizes = []
    for path in system.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        found = re.fullmatch(r"(\d+)([KMG]?)", system.text(path))
        if found:
            sizes.append(int(found[1]) * _UNITS[found[2]])
    return max(sizes, default=_UNKNOWN)


class Cache:
    """Blocks of memory, the least recently used of which leaves first."""

    def __init__(self, capacity: int) -> None:
        self._most = max(capacity // BLOCK, 1)
        self._blocks: OrderedDict[tuple[str, int], None] = OrderedDict()

    def run(self, op: Op, program: Program, offsets: Mapping[str, int]) -> int:
        """Touch the operands of an operation, and say how many bytes of them were not there."""
        missing = 0
        for key, nbytes in _blocks(op, program, offsets):
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            missing += nbytes
            self._blocks[key] = None
            if len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        return missing


def missing_bytes(program: Program, offsets: Mapping[str, int], capacity: int) -> list[int]:
    """Bytes that each operation brings from memory when the program runs again and again.

    ``offsets`` are places in the arena, by base tensor.
    """
    cache = Cache(capacity)
    for op in program.ops:  # the run before leaves what it touched last
        cache.run(op, program, offsets)
    return [cache.run(op, program, offsets) for op in program.ops]


def _blocks(
    op: Op, program: Program, offsets: Mapping[str, int]
) -> Iterator[tuple[tuple[str, int], int]]:
    """The blocks of memory that an operation touches, and the bytes of each that it needs."""
    for name in dict.fromkeys((*op.inputs.values(), *op.outputs.values())):
        tensor = program.tensors[name]
        base = program.tensors[tensor.base]
        first = tensor.view.offset if tensor.view else 0
        reach = sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.strides, strict=True))
        size = BYTES[base.dtype]
        if base.storage == "arena":
            place, begin = "arena", offsets[base.name]
        elif base.storage == "constant":
            place, begin = base.name, 0
        else:
            place, begin = base.storage, base.offset * size
        begin += first * size
        end = begin + (reach + 1) * size
        for block in range(begin // BLOCK, -(-end // BLOCK)):
            inside = min(end, (block + 1) * BLOCK) - max(begin, block * BLOCK)
            yield (place, block), inside
