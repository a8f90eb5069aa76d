"""Puts the optimizer's step into the program: one operation at its end for all parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.plan.ir import Op, Program


def update_together(
    program: Program, parameters: Iterable[str], optimizer: str, gradient_factor: float = 1.0
) -> Program:
    """Let each of ``parameters``, whose gradients the program gives, take a step at its end.

    ``optimizer`` is "sgd" or "adam"; the gradients are multiplied by ``gradient_factor``.
    """
    tensors = dict(program.tensors)
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for number, name in enumerate(parameters):
        gradient, moved = tensors[GRADIENT_PREFIX + name], f"{name}..moved"
        tensors[moved] = replace(tensors[name], name=moved)
        inputs |= {f"weight{number}": name, f"grad{number}": gradient.name}
        outputs[f"weight_new{number}"] = moved
    if not outputs:
        return program
    at = {"optimizer": optimizer, "gradient_factor": gradient_factor}
    op = Op("update_together", inputs, outputs, at, f"step of {len(outputs)} parameters")
    return replace(program, tensors=tensors, ops=(*program.ops, op))
