"""Which GPU architectures a file holds code for: an ELF library's fatbins, or a fatbin as it is.

Only headers are looked at; they name the architecture in the clear, also of compressed code. Read
from files that nvcc 13.0 made. Integers are little-endian:

    fatbin   u32 magic   u16 version   u16 header bytes   u64 bytes of the entries
    entry    u16 kind   u16 version   u32 header bytes   u64 bytes of the code   u32 compressed
             u32   u16 minor   u16 major (of PTX's language)   u32 architecture   u64 name
             u64 flags
"""

from __future__ import annotations

import mmap
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Buffer = bytes | mmap.mmap

MAGIC = 0xBA55ED50
HEADER = struct.Struct("<IHHQ")
ENTRY = struct.Struct("<HHIQIIHHIQQ")
PTX, SASS = 1, 2
EXACT, FAMILY = 1 << 20, 1 << 21  # flags of sm_90a and sm_100f
SECTIONS = (b".nv_fatbin", b"__nv_relfatbin")
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_CHECK_EVERY = 512  # entries between two looks at the clock


@dataclass
class Held:
    """The code that a file holds, by architecture ("90a"), with the number of pieces of each."""

    sass: Counter[str] = field(default_factory=Counter)
    ptx: Counter[str] = field(default_factory=Counter)
    language: tuple[int, int] = (0, 0)  # of PTX: the newest version
    complete: bool = True  # False: there was no time for the rest, or it is damaged

    def __bool__(self) -> bool:
        return bool(self.sass or self.ptx)

    def add(self, other: Held) -> None:
        """Take in another file's."""
        self.sass.update(other.sass)
        self.ptx.update(other.ptx)
        self.language = max(self.language, other.language)
        self.complete &= other.complete

    def text(self) -> str:
        """As "sm_80, sm_90a, PTX of sm_90"."""
        parts = [f"sm_{name}" for name in sorted(self.sass, key=_order)]
        parts += [f"PTX of sm_{name}" for name in sorted(self.ptx, key=_order)]
        return ", ".join(parts) or "no GPU code"


def _order(name: str) -> tuple[int, str]:
    return split(name)[0], name


def split(name: str) -> tuple[int, str]:
    """(90, "a") of "90a"."""
    number = name.rstrip("af")
    return int(number), name[len(number) :]


def read_file(path: Path, deadline: float = float("inf")) -> Held:
    """What a file holds; nothing for one that is no such file.

    Args:
        path: an ELF library or a fatbin.
        deadline: as `time.monotonic` counts; what was not read by then makes it incomplete.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size < HEADER.size:
            return Held(complete=False)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hasattr(data, "madvise"):
                data.madvise(mmap.MADV_RANDOM)  # pieces are far apart
            return read(data, deadline)


def read(data: Buffer, deadline: float = float("inf")) -> Held:
    """What the bytes of a file hold; see `read_file`. Never fails, whatever they are."""
    held = Held()
    for begin, end in fatbin_ranges(data):
        _walk(data, begin, end, held, deadline)
    return held


def fatbin_ranges(data: Buffer) -> Iterator[tuple[int, int]]:
    """Where fatbins are: in sections of an ELF file, or everywhere in a file that begins as one."""
    if data[:4] == _MAGIC_BYTES:
        yield 0, len(data)
    elif data[:6] == b"\x7fELF\x02\x01" and len(data) >= 64:
        yield from _sections(data)


def _sections(data: Buffer) -> Iterator[tuple[int, int]]:
    """Those of a 64-bit little-endian ELF file that hold fatbins."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    width, count, names = struct.unpack_from("<HHH", data, 0x3A)
    size = len(data)

    def section(index: int) -> tuple[int, int, int]:
        """(offset of the name, offset, bytes); nothing of what is not in the file."""
        at = table + index * width
        if width < 64 or at + 64 > size:
            return 0, 0, 0
        name, begin, length = struct.unpack_from("<I20xQQ", data, at)
        return name, begin, length

    _, strings, length = section(names)
    for index in range(count):
        name, begin, extent = section(index)
        if name < length and extent and begin < size:
            at = strings + name
            text = bytes(data[at : at + 16]).split(b"\0")[0] if at < size else b""
            if text in SECTIONS:
                yield begin, min(begin + extent, size)


def _walk(data: Buffer, begin: int, end: int, held: Held, deadline: float) -> None:
    """Read one fatbin after the other; between them there may be zeros."""
    at, looked = begin, 0
    while at + HEADER.size <= end:
        magic, _, header, size = HEADER.unpack_from(data, at)
        if magic != MAGIC or header < HEADER.size:
            at = data.find(_MAGIC_BYTES, at + 4, end)
            if at < 0:
                return
            continue
        stop, at = at + header + size, at + header
        if stop > end:
            held.complete, stop = False, end
        while at + ENTRY.size <= stop:
            looked += 1
            if looked % _CHECK_EVERY == 0 and time.monotonic() > deadline:
                held.complete = False
                return
            after = _entry(data, at, held)
            if after > stop or after <= at:
                held.complete = False
                break
            at = after
        at = stop


def _entry(data: Buffer, at: int, held: Held) -> int:
    """Count one piece of code; returns where the next one begins, ``at`` if it is damaged."""
    kind, _, header, size, _, _, minor, major, number, _, flags = ENTRY.unpack_from(data, at)
    if header < ENTRY.size:
        return at
    # Others, such as intermediate code for the linker, run nowhere.
    if kind in (PTX, SASS) and 10 <= number < 1000:
        name = f"{number}{'a' if flags & EXACT else 'f' if flags & FAMILY else ''}"
        (held.ptx if kind == PTX else held.sass)[name] += 1
        if kind == PTX:
            held.language = max(held.language, (major, minor))
    return at + header + size
