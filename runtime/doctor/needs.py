"""Which other libraries an ELF library asks the loader for, read from its dynamic section."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_DYNAMIC, _STRINGS_OF = 6, 0x28  # kind of section; where a section's header names its strings'
_NEEDED = 1
_MOST = 10_000  # entries; a damaged file may claim any number


def needed(path: Path) -> tuple[str, ...]:
    """As ("libcudnn.so.9",); () for what is no 64-bit little-endian ELF file, or damaged.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size < 64:
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _needed(data)
            except (struct.error, OverflowError, ValueError):  # points outside of the file
                return ()


def _needed(data: mmap.mmap) -> tuple[str, ...]:
    if data[:6] != b"\x7fELF\x02\x01":
        return ()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    width, count = struct.unpack_from("<HH", data, 0x3A)
    for at in range(table, table + width * count, max(width, 64)):
        (kind,) = struct.unpack_from("<I", data, at + 4)
        if kind != _DYNAMIC:
            continue
        begin, length = struct.unpack_from("<QQ", data, at + 0x18)
        (linked,) = struct.unpack_from("<I", data, at + _STRINGS_OF)
        strings, size = struct.unpack_from("<QQ", data, table + linked * width + 0x18)
        entries = [
            struct.unpack_from("<QQ", data, begin + 16 * i) for i in range(min(length // 16, _MOST))
        ]
        return tuple(_text(data, strings + at, strings + size) for kind, at in entries
                     if kind == _NEEDED and at < size)  # fmt: skip
    return ()


def _text(data: mmap.mmap, begin: int, end: int) -> str:
    return data[begin : min(end, begin + 256)].partition(b"\0")[0].decode("ascii", "replace")
