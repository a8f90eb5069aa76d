"""Small files with GPU code, as nvcc makes them: fatbins, and ELF libraries that hold some."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FLAGS = {"": 0x11, "a": 0x100011, "f": 0x1200011}


def entry(name: str, code: bytes = b"code....", language: tuple[int, int] = (9, 0)) -> bytes:
    """One piece: machine code for "90a", or PTX if the name begins with "ptx"."""
    ptx, name = name.startswith("ptx"), name.removeprefix("ptx")
    number = name.rstrip("af")
    minor, major = (language[1], language[0]) if ptx else (8, 1)
    header = struct.pack(
        "<HHIQIIHHIQQQQ", 1 if ptx else 2, 0x101, 64, len(code), 0, 0, minor, major, int(number),
        0, FLAGS[name[len(number):]], 0, 0,
    )  # fmt: skip
    return header + code


def fatbin(names: Sequence[str], language: tuple[int, int] = (9, 0)) -> bytes:
    """One fatbin with a piece for each of ``names``."""
    entries = b"".join(entry(name, language=language) for name in names)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def library(content: bytes, section: str = ".nv_fatbin") -> bytes:
    """A 64-bit ELF library whose only section of interest holds ``content``."""
    names = b"\0.shstrtab\0" + section.encode() + b"\0"
    at = 64 + len(names)
    rows = [(0, 0, 0), (1, 64, len(names)), (11, at, len(content))]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, begin, size, 0, 0, 8, 0)
        for name, begin, size in rows
    )
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 0, at + len(content), 0, 64, 0, 0, 64, 3, 1)
    return head + names + content + table


def library_for(*names: str) -> bytes:
    """A library with code for each of ``names``: "87", "90a", "ptx80"."""
    return library(fatbin(names))
