"""Float64 with the signs that another computation found, and networks whose gradients are sound."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.plan.ir import Op, Program
from support.interpret import Memory, execute

Array = npt.NDArray[Any]


class Found(Protocol):
    """Where what was computed can be read."""

    def read(self, name: str) -> Array: ...


def follow(op: Op, program: Program, memory: Memory, found: Found, factor: float) -> None:
    """Compute an operation in float64, with the signs of the engine's own values."""
    if op.kind == "l1_loss" and "grad" in op.outputs:
        execute(op, program, memory)
        memory.write(op.outputs["grad"], found.read(op.outputs["grad"]) / factor)
        return
    masked = op.inputs.get("mask") if op.kind == "conv" else None
    if masked is None:
        execute(op, program, memory)
        return
    exact = memory.read(masked)
    memory.write(masked, found.read(masked))
    execute(op, program, memory)
    memory.write(masked, exact)


def initialised(bundle: Bundle) -> npt.NDArray[np.float32]:
    """Weights as PyTorch draws them: the loss is far from its minimum, and no gradient vanishes."""
    rng = np.random.default_rng(0)
    flat = bundle.weights()
    fan = 1
    for row in bundle.manifest.parameters:
        fan = int(np.prod(row.shape[1:])) if len(row.shape) > 1 else fan
        part = flat[bundle.offsets()[row.name]]
        part[...] = rng.uniform(-1, 1, part.shape) / np.sqrt(fan)
    return flat
