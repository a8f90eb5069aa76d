"""Puts the step of SGD into the program: a parameter moves when its gradient is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.plan.ir import Op, Program, Storage, Tensor


def update_weights(program: Program, step_sizes: Mapping[str, float]) -> Program:
    """Add ``weight <- weight - step_size * gradient`` for every parameter with a step size.

    It comes after the last operation that writes the gradient or reads the weight, whichever is
    later: an operation after it would see the new value.
    """
    uses = _last_uses(program)
    tensors = dict(program.tensors)
    after: dict[int, list[Op]] = {}
    for name, step_size in step_sizes.items():
        weight, gradient = tensors[name], tensors[GRADIENT_PREFIX + name]
        moved = replace(weight, name=f"{name}..moved")
        tensors[moved.name] = moved
        op = Op(
            "update_sgd",
            {"weight": name, "grad": gradient.name},
            {"weight_new": moved.name},
            {"step_size": step_size},
            f"step of {name}",
        )
        after.setdefault(max(uses[_place(weight)], uses[_place(gradient)]), []).append(op)
    ops = tuple(
        op
        for position, before in enumerate(program.ops)
        for op in (before, *after.get(position, ()))
    )
    return replace(program, tensors=tensors, ops=ops)


def _last_uses(program: Program) -> dict[tuple[Storage, int], int]:
    """Place in the flat arrays -> the last position that reads or writes there."""
    found = {}
    for position, op in enumerate(program.ops):
        for name in (*op.inputs.values(), *op.outputs.values()):
            found[_place(program.tensors[program.base(name)])] = position
    return found


def _place(tensor: Tensor) -> tuple[Storage, int]:
    return tensor.storage, tensor.offset
