"""A GPU behind the host's arrays: what a launch reads goes there, and all of it comes back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.runtime.cuda.device import ALIGNMENT, Device
from support.cuda_memory import HostDevice, addresses
from support.guarded import Block, Guards


class MirroredDevice(HostDevice):
    """Runs work on ``gpu``, on copies of all watched memory that it names, guards included.

    What is found on the host is found here, too, but for reads outside of arrays: their guards are
    NaN there as well. Work runs twice, as on the host, and must give the same bits.
    """

    def __init__(self, guards: Guards, gpu: Device) -> None:
        super().__init__(guards)
        self._gpu = gpu

    def _run(self, work: Work, backward: bool) -> None:
        for launch in work.launches:
            self._check_addresses(launch)
        self._gpu.prepare({launch.kernel for launch in work.launches})
        with self._mirrored(work) as moved:
            for launch in work.launches:
                arguments = type(launch.arguments).from_buffer_copy(launch.arguments)
                _move(arguments, moved)
                self._gpu.launch(replace(launch, arguments=arguments))
            self._gpu.synchronize()
        self.guards.check()
        for launch in work.launches[-1:]:
            self._check_gaps(launch)

    @contextmanager
    def _mirrored(self, work: Work) -> Iterator[dict[int, int]]:
        """Address here -> address there, of everything that the launches name."""
        moved: dict[int, int] = {}
        copies: dict[int, tuple[Block, int]] = {}  # begin here -> block and its begin there
        owned: list[int] = []
        self.guards.unwatch()
        try:
            for here in sorted(_named(work.launches)):
                block = self._block_at(here)
                start = int(block.memory.ctypes.data)
                if start not in copies:
                    owned.append(self._gpu.allocate(block.memory.size + ALIGNMENT))
                    # A launcher may have looked at how an address is aligned.
                    there = owned[-1] + (start - owned[-1]) % ALIGNMENT
                    copies[start] = (block, there)
                    self._gpu.upload(there, block.memory)
                moved[here] = copies[start][1] + here - start
            yield moved
            for block, there in copies.values():
                self._gpu.download(block.memory, there)
            self._gpu.synchronize()
        finally:
            for address in owned:
                self._gpu.free(address)

    def _block_at(self, address: int) -> Block:
        return next(b for b in self.guards.blocks if b.start <= address <= b.start + b.size)


def _named(launches: tuple[Launch, ...]) -> set[int]:
    return {address for launch in launches for _, address in addresses(launch.arguments)}


def _move(arguments: Any, moved: dict[int, int]) -> None:
    """Replace every pointer that is not null."""
    for field, kind, *_ in arguments._fields_:
        value = getattr(arguments, field)
        if isinstance(value, ctypes.Structure):
            _move(value, moved)
        elif isinstance(value, ctypes.Array):
            for number, item in enumerate(value):
                if isinstance(item, ctypes.Structure):
                    _move(item, moved)
                elif kind._type_ is ctypes.c_void_p and item:
                    value[number] = moved[item]
        elif kind is ctypes.c_void_p and value:
            setattr(arguments, field, moved[value])
