"""Where the tensors of a program are: names become addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.tensors import PlaneArgs, TensorArgs
from edgeadapt.runtime.plan.ir import BYTES, Program, Storage, numpy_dtype


@dataclass(frozen=True)
class Memory:
    """The addresses of one program's tensors.

    ``bases`` holds where each storage begins; ``offsets`` bytes of arena tensors. Constants lie in
    arrays of their own, which must stay alive as long as the addresses are used.
    """

    program: Program
    bases: Mapping[Storage, int]
    offsets: Mapping[str, int]
    constants: Mapping[str, npt.NDArray[Any]]

    def address(self, name: str) -> int:
        """Of the element with all indices 0."""
        tensor = self.program.tensors[name]
        base = self.program.tensors[tensor.base]
        first = tensor.view.offset if tensor.view else 0
        return self._base_address(base.name) + first * BYTES[base.dtype]

    def plane(self, name: str | None) -> PlaneArgs:
        """An image as kernels are told of it; none for None."""
        if name is None:
            return PlaneArgs()
        tensor = self.program.tensors[name]
        return PlaneArgs.at(self.address(name), tensor.shape, tensor.strides, tensor.dtype)

    def planes(self, names: Sequence[str]) -> list[PlaneArgs]:
        """Several images."""
        return [self.plane(name) for name in names]

    def tensor(self, name: str) -> TensorArgs:
        """A tensor as kernels are told of it."""
        tensor = self.program.tensors[name]
        return TensorArgs.at(self.address(name), tensor.shape, tensor.strides, tensor.dtype)

    def _base_address(self, name: str) -> int:
        tensor = self.program.tensors[name]
        if tensor.storage == "arena":
            return self.bases["arena"] + self.offsets[name]
        if tensor.storage == "constant":
            return int(self.constants[name].ctypes.data)
        return self.bases[tensor.storage] + tensor.offset * BYTES[tensor.dtype]


def nowhere(program: Program) -> Memory:
    """Addresses that nobody may follow: for asking kernels what depends on sizes only."""
    storages: tuple[Storage, ...] = ("arena", "image", "restored", "weights", "gradients")
    offsets = dict.fromkeys(program.tensors, 0)
    return Memory(program, dict.fromkeys(storages, 64), offsets, hold_constants(program))


def hold_constants(program: Program) -> dict[str, npt.NDArray[Any]]:
    """The program's constants as contiguous arrays of the types that kernels read."""
    return {
        name: np.ascontiguousarray(value, numpy_dtype(program.tensors[name].dtype))
        for name, value in program.constants.items()
    }
