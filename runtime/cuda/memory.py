"""Where the tensors of a program are on a device: names become addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy.typing as npt

from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.runtime.cuda.device import ALIGNMENT
from edgeadapt.runtime.plan.ir import BYTES, Program, Storage

_NOWHERE = ALIGNMENT << 32  # an address that nobody may follow


@dataclass(frozen=True)
class DeviceMemory:
    """The addresses of one program's tensors.

    ``bases`` holds where each storage begins, ``offsets`` bytes of arena tensors from there, and
    ``constants`` the address of each constant. ``hold`` copies an array that kernels read to the
    device, for as long as the program is in use there, and returns its address.
    """

    program: Program
    bases: Mapping[Storage, int]
    offsets: Mapping[str, int]
    constants: Mapping[str, int]
    hold: Callable[[npt.NDArray[Any]], int]

    def address(self, name: str) -> int:
        """Of the element with all indices 0."""
        tensor = self.program.tensors[name]
        base = self.program.tensors[tensor.base]
        first = tensor.view.offset if tensor.view else 0
        return self._base_address(base.name) + first * BYTES[base.dtype]

    def image(self, name: str) -> ImageArgs:
        """An image as kernels are told of it."""
        tensor = self.program.tensors[name]
        return ImageArgs.at(self.address(name), tensor.shape, tensor.strides, tensor.dtype)

    def images(self, names: Sequence[str]) -> list[ImageArgs]:
        """Several images."""
        return [self.image(name) for name in names]

    def tensor(self, name: str) -> TensorArgs:
        """A tensor as kernels are told of it."""
        tensor = self.program.tensors[name]
        return TensorArgs.at(self.address(name), tensor.shape, tensor.strides, tensor.dtype)

    def flat(self, name: str) -> TensorArgs:
        """A contiguous tensor as one row of its elements."""
        tensor = self.program.tensors[name]
        return TensorArgs.at(self.address(name), (prod(tensor.shape),), (1,), tensor.dtype)

    def _base_address(self, name: str) -> int:
        tensor = self.program.tensors[name]
        if tensor.storage == "arena":
            return self.bases["arena"] + self.offsets[name]
        if tensor.storage == "constant":
            return self.constants[name]
        return self.bases[tensor.storage] + tensor.offset * BYTES[tensor.dtype]


def nowhere(program: Program) -> DeviceMemory:
    """Addresses for asking launchers what depends on sizes only."""
    storages: tuple[Storage, ...] = ("arena", "image", "restored", "weights", "gradients")
    offsets = dict.fromkeys(program.tensors, 0)
    constants = dict.fromkeys(program.constants, _NOWHERE)
    bases = dict.fromkeys(storages, _NOWHERE)
    return DeviceMemory(program, bases, offsets, constants, lambda array: _NOWHERE)
