"""All stages in a row for CUDA: from a graph of a bundle to a program with all its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.cuda.layout import to_channels_last
from edgeadapt.runtime.cuda.pack import PackedElements, pack_together
from edgeadapt.runtime.cuda.scale import MixedError, scale_gradients
from edgeadapt.runtime.cuda.update import update_together
from edgeadapt.runtime.plan.compile import Plan
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.lifetimes import ScratchBytes
from edgeadapt.runtime.plan.place import place
from edgeadapt.runtime.plan.precision import CPU_ROLES, Roles, compute_in, to_half
from edgeadapt.runtime.plan.read import read
from edgeadapt.runtime.plan.remat import fit
from edgeadapt.runtime.plan.schedule import schedule

# Every kernel reads and writes 16 bits; what stays in float32 is what sums and matrix products
# give, which may be large.
ROLES: Roles = {
    **CPU_ROLES,
    "reduce": {"x"},
    "max_pool": {"x", "y"},
    "max_pool_grad": {"grad_y", "x", "y"},
    "pad": {"x", "y"},
    "pad_grad": {"grad_y", "y"},
}


@dataclass(frozen=True)
class DevicePlan(Plan):
    """A program and where its tensors lie, and what all gradients in it are multiplied by."""

    gradient_factor: float = 1.0  # a power of two


# Says with ``algorithm`` who computes which convolution, where a library takes some.
Choose = Callable[[Program], Program]


def as_it_is(program: Program) -> Program:
    """All convolutions are own kernels'."""
    return program


@dataclass(frozen=True)
class Target:
    """What a plan is made for."""

    packed_elements: PackedElements
    scratch_bytes: ScratchBytes  # asks a kernel for its working memory
    precision: Precision = "fp32"
    memory_budget: int | None = None  # bytes of the arena
    choose: Choose = as_it_is


def compile_graph(
    bundle: Bundle,
    graph: str,
    height: int,
    width: int,
    target: Target,
    updated: Sequence[str] = (),
    optimizer: str = "sgd",
) -> DevicePlan:
    """Plan the graph in the file ``graph`` for an image of ``height`` x ``width``.

    The parameters ``updated``, whose gradients the graph must give, take a step of ``optimizer``,
    "sgd" or "adam", at its end.

    Raises:
        BackendError: if there is no rule for an operator, or float16 cannot hold the gradients.
        ConfigError: if the plan cannot do with the memory of ``target``.
    """
    program, factor = lower(read(bundle, graph, height, width), target)
    if target.memory_budget is not None:
        program = fit(program, target.memory_budget, target.scratch_bytes)
    program = update_together(program, updated, optimizer, factor)
    return DevicePlan(program, place(program, target.scratch_bytes), factor)


def lower(program: Program, target: Target) -> tuple[Program, float]:
    """Everything that does not depend on how much memory there is; the gradients' factor too."""
    program, factor = in_range(fuse(program), target.precision)
    program = to_channels_last(schedule(in_precision(program, target.precision)))
    return pack_together(target.choose(program), target.packed_elements), factor


def in_range(program: Program, precision: Precision) -> tuple[Program, float]:
    """The same with gradients that float16 holds, where that is asked for.

    Raises:
        BackendError: if the loss is one for which it is not known how.
    """
    if precision != "fp16":
        return program, 1.0
    try:
        return scale_gradients(program)
    except MixedError as error:
        raise BackendError(
            f"CUDA: the gradients of this loss cannot be kept in the range of fp16 ({error}).",
            "choose bf16, which has the range of float32.",
        ) from None


def in_precision(program: Program, precision: Precision) -> Program:
    """The same in 16 bits, or with products in them."""
    if precision == "bf16":
        return to_half(program, "bf16", ROLES)
    if precision == "fp16":
        return to_half(program, "f16", ROLES)
    return compute_in(program, "tf32") if precision == "tf32" else program
