"""Calls kernels in another process: of another CPU, under an emulator (kernel_runner.cpp).

EDGEADAPT_KERNEL_RUNNER holds the command, "qemu-aarch64 -L /usr/aarch64-linux-gnu kernel_runner".
"""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from support.guarded import Guards

RUNNER = shlex.split(os.environ.get("EDGEADAPT_KERNEL_RUNNER", ""))


@cache
def runner_levels() -> tuple[str, ...]:
    """The levels of the runner's CPU."""
    done = subprocess.run([*RUNNER, "--levels"], stdout=subprocess.PIPE, text=True, check=True)
    return tuple(done.stdout.split())


def run_elsewhere(
    level: str, name: str, arguments: ctypes.Structure, threads: int, guards: Guards
) -> None:
    """Run one call on copies of all of ``guards``' memory and copy the results back."""
    places = dict(pointers(arguments))
    scratch = [place for place, (field, _) in places.items() if field == "scratch"]
    found = []
    for place, (field, address) in places.items():
        if field != "scratch" and address:
            found.append((place, *_locate(field, address, guards)))
    header = struct.pack(
        "64s64s5q",
        *(level.encode(), name.encode(), threads, ctypes.sizeof(arguments)),
        *(scratch[0] if scratch else -1, len(found), len(guards.blocks)),
    )
    blocks = [block.memory for block in guards.blocks]
    table = [(memory.ctypes.data % 64, memory.size) for memory in blocks]
    numbers = [number for row in (*found, *table) for number in row]
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request"), Path(folder, "answer")
        content = [header, bytes(arguments), struct.pack(f"{len(numbers)}q", *numbers)]
        request.write_bytes(b"".join([*content, *(memory.tobytes() for memory in blocks)]))
        done = subprocess.run(
            [*RUNNER, str(request), str(answer)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name} at {level}: {done.stderr or done.returncode}"
        result = memoryview(answer.read_bytes())
    for memory in blocks:
        memory.data[:] = result[: memory.size]
        result = result[memory.size :]


def pointers(
    arguments: Any, base: int = 0, field: str = ""
) -> Iterator[tuple[int, tuple[str, int | None]]]:
    """(offset, (name of the field, address)) of every pointer in a struct, nested ones too."""
    if isinstance(arguments, ctypes.Structure):
        for name, kind in arguments._fields_:
            place = base + getattr(type(arguments), name).offset
            if kind is ctypes.c_void_p:
                yield place, (name, getattr(arguments, name))
            else:
                yield from pointers(getattr(arguments, name), place, name)
    elif isinstance(arguments, ctypes.Array) and arguments._type_ is ctypes.c_void_p:
        for index, address in enumerate(arguments):
            yield base + 8 * index, (field, address)
    elif isinstance(arguments, ctypes.Array) and issubclass(arguments._type_, ctypes.Structure):
        for index, item in enumerate(arguments):
            yield from pointers(item, base + index * ctypes.sizeof(arguments._type_), field)


def _locate(field: str, address: int, guards: Guards) -> tuple[int, int]:
    """Which block and where in it."""
    for index, block in enumerate(guards.blocks):
        if block.start <= address <= block.start + block.size:
            return index, address - block.memory.ctypes.data
    raise AssertionError(f"{field} points to memory that did not come from the fixture `guards`")
