"""Runs a program in float64 with the roundings of its types: what a precision costs at least.

Sums are exact; what is stored is rounded to the tensor's type, and what convolutions multiply to
theirs. An engine adds what its sums in float32 are off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeadapt.runtime.plan.ir import Op, Program
from support.interpret import Memory, execute

Array = npt.NDArray[Any]
_TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_MULTIPLIED = ("weight", "x0", "x1", "x2", "x3", "grad_y")


class Rounded(Memory):
    """Memory that holds what its types can."""

    def __init__(self, program: Program, image: Array, weights: Mapping[str, Array]) -> None:
        self._program = program
        super().__init__(program, image, weights)

    def write(self, name: str, values: Array) -> None:
        dtype = self._program.tensors[self._program.base(name)].dtype
        super().write(name, rounded(values, dtype))

    def run(self) -> None:
        """Every operation."""
        for op in self._program.ops:
            exact = self._round_operands(op)
            execute(op, self._program, self)
            written = {self._program.base(name) for name in op.outputs.values()}
            for name, values in exact.items():
                if self._program.base(name) not in written:
                    super().write(name, values)

    def _round_operands(self, op: Op) -> dict[str, Array]:
        """Round what is multiplied; what it was before."""
        if op.kind not in ("conv", "conv_weight_grad"):
            return {}
        names = dict.fromkeys(op.inputs[role] for role in _MULTIPLIED if role in op.inputs)
        before = {name: self.read(name) for name in names}
        for name, values in before.items():
            super().write(name, rounded(values, op.attributes.get("compute", "f32")))
        return before


def rounded(values: Array, dtype: str) -> Array:
    """To the nearest number of a type, in float64."""
    if dtype not in _TYPES:
        return values
    single = torch.from_numpy(np.ascontiguousarray(values)).to(torch.float32)
    return single.to(_TYPES[dtype]).to(torch.float64).numpy()
