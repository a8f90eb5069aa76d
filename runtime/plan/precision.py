"""Which tensors of a program are held in 16 bits, and in what its products are computed."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Literal

from edgeadapt.runtime.plan.ir import Program, Tensor

Roles = Mapping[str, AbstractSet[str]]

# The kinds whose kernels read and write 16 bits in these roles; any other keeps its operands in
# float32. Sums and what belongs to parameters are float32 everywhere.
CPU_ROLES: Roles = {
    "conv": {"x0", "x1", "x2", "x3", "add0", "add1", "post", "mask", "y"},
    "conv_weight_grad": {"x0", "x1", "x2", "x3", "grad_y"},
    "pointwise": {f"x{i}" for i in range(8)} | {"y"},
    "resize": {"x", "add", "y"},
    "resize_grad": {"grad_y", "add", "y"},
    "avg_pool": {"x", "y"},
    "avg_pool_grad": {"grad_y", "add", "y"},
    "l1_loss": {"a", "b", "grad"},
}
_ONE_TYPE = ("pad", "pad_grad")  # kinds whose operands and results are of one type
_COMPUTE = ("conv", "conv_weight_grad")


def to_half(
    program: Program, dtype: Literal["bf16", "f16"] = "bf16", roles: Roles = CPU_ROLES
) -> Program:
    """Hold images of the arena in ``dtype`` where every operation on them can, and multiply in it.

    The image, its restoration, losses, weights and gradients stay float32; every sum is added up in
    float32 and rounded once, when it is stored.
    """
    barred = _barred(program, roles)
    tensors = {
        name: replace(tensor, dtype=dtype)
        if tensor.base not in barred and _is_image(program.tensors[tensor.base])
        else tensor
        for name, tensor in program.tensors.items()
    }
    return compute_in(replace(program, tensors=tensors), dtype)


def compute_in(program: Program, compute: str) -> Program:
    """Let convolutions and weight gradients round what they multiply to ``compute``."""
    ops = tuple(
        op.with_attributes(compute=compute) if op.kind in _COMPUTE else op for op in program.ops
    )
    return replace(program, ops=ops)


def _barred(program: Program, roles: Roles) -> set[str]:
    """Tensors that must stay float32: read from outside, or an operand that has to be float32."""
    barred = {program.base(name) for name in program.outputs}
    for op in program.ops:
        allowed = roles.get(op.kind, set())
        for role, name in (*op.inputs.items(), *op.outputs.items()):
            if role not in allowed:
                barred.add(program.base(name))
    tied = [op for op in program.ops if op.kind in _ONE_TYPE]
    while True:
        before = len(barred)
        for op in tied:
            names = {program.base(n) for n in (*op.inputs.values(), *op.outputs.values())}
            if names & barred or not all(_is_image(program.tensors[name]) for name in names):
                barred |= names
        if len(barred) == before:
            return barred


def _is_image(tensor: Tensor) -> bool:
    """Whether this is an activation: one value a pixel and channel."""
    return (
        tensor.storage == "arena"
        and tensor.dtype == "f32"
        and len(tensor.shape) == 4
        and tensor.shape[0] == 1
        and tensor.shape[2] * tensor.shape[3] > 1
    )
