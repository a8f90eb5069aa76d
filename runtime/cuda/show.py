"""A plan for CUDA as text: launches, work, bytes against the least there can be, and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.cuda.calls import OWN, Makers, bind, packed_elements, scratch_asker
from edgeadapt.runtime.cuda.cudnn_offer import (
    offers,
    offers_document,
    offers_line,
    offers_table,
)
from edgeadapt.runtime.cuda.devices import device_names, find_device
from edgeadapt.runtime.cuda.memory import nowhere
from edgeadapt.runtime.cuda.plan import Target
from edgeadapt.runtime.cuda.roofline import Roofline, roofline
from edgeadapt.runtime.plan.compile import Plan
from edgeadapt.runtime.plan.cost import traffic
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.remat_build import is_repeated
from edgeadapt.runtime.plan.show import MIB, plan_document, print_plan

# Kinds that multiply matrices, on tensor cores where the precision allows; all others move data.
PRODUCTS = ("conv", "conv_weight_grad", "matmul")


@dataclass(frozen=True)
class Launches:
    """How many launches a program takes, and what they move."""

    of_products: int  # convolutions, weight gradients, matrix products
    of_others: int
    moved_bytes: int  # operands of each operation once, working memory written and read once
    least_bytes: int

    @property
    def excess(self) -> float:
        """How often the least is moved."""
        return self.moved_bytes / self.least_bytes if self.least_bytes else 1.0


def launches_of(program: Program, makers: Makers) -> Launches:
    """What running a program takes, and the least it could move."""
    scratch = [1 << 40] * len(program.ops)  # nobody follows it
    calls = bind(program, makers, nowhere(program), scratch)
    # The engine makes the update's launch, with tables of its own.
    counts = [
        1 if op.kind == "update_together" else len(made)
        for op, made in zip(program.ops, calls, strict=True)
    ]
    products = [op.kind in PRODUCTS for op in program.ops]
    asked = scratch_asker(makers)
    moved = sum(traffic(op, program) + 2 * asked(op, program) for op in program.ops)
    return Launches(
        sum(n for n, product in zip(counts, products, strict=True) if product),
        sum(n for n, product in zip(counts, products, strict=True) if not product),
        moved,
        sum(_least(op, program) for op in program.ops),
    )


def _least(op: Op, program: Program) -> int:
    """Bytes that an operation must move: each tensor is written once and read once by each user.

    Elementwise operations could have been part of others, what is computed again could have been
    kept, and running sums could have stayed where they are added up.
    """
    if op.kind == "pointwise" or is_repeated(op):
        return 0
    return traffic(op.with_inputs(sum_weight=None, sum_bias=None), program)


def cuda_target(precision: Precision, memory_budget: int | None) -> Target:
    """What a plan is made for, whatever the device."""
    return Target(packed_elements, scratch_asker(OWN), precision, memory_budget)


def cuda_document(plan: Plan, precision: Precision) -> dict[str, Any]:
    """The plan for JSON."""
    found = launches_of(plan.program, OWN)
    return {
        **plan_document(plan),
        "launches_of_products": found.of_products,
        "launches_of_others": found.of_others,
        "moved_bytes": found.moved_bytes,
        "least_bytes": found.least_bytes,
        "cudnn": offers_document(plan.program),
        "devices": {
            key: {
                "seconds": line.seconds,
                "memory_bound_seconds": line.memory_bound_seconds,
                "fits": plan.placement.arena_bytes <= find_device(key).usable_bytes,
            }
            for key, line in _lines(plan.program, precision).items()
        },
    }


def print_cuda_plan(plan: Plan, precision: Precision, out: Console) -> None:
    """Print the operations, what they launch and move, the least time on each device, and which
    convolutions cuDNN is offered."""
    print_plan(plan, out)
    found = launches_of(plan.program, OWN)
    out.print(
        Text(
            f"{found.of_products + found.of_others} launches: {found.of_products} of convolutions "
            f"and matrix products, {found.of_others} of all else"
        ),
        soft_wrap=True,
    )
    out.print(
        Text(
            f"{found.moved_bytes / MIB:,.0f} MiB moved, {found.excess:.2f} times the least (each "
            "tensor written once and read once by each operation that is not elementwise)"
        ),
        soft_wrap=True,
    )
    out.print(_table(plan, _lines(plan.program, precision)))
    listed = offers(plan.program)
    out.print(offers_table(listed))
    out.print(Text(offers_line(listed)), soft_wrap=True)


def _lines(program: Program, precision: Precision) -> dict[str, Roofline]:
    return {key: roofline(program, find_device(key), precision) for key in device_names()}


def _table(plan: Plan, lines: Mapping[str, Roofline]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    headers: Sequence[str] = ("device", "least ms", "waiting for memory", "arena of its memory")
    for index, name in enumerate(headers):
        table.add_column(name, justify="right" if index else "left")
    for key, line in lines.items():
        share = line.memory_bound_seconds / line.seconds if line.seconds else 0.0
        used = plan.placement.arena_bytes / find_device(key).usable_bytes
        cells = (f"{1e3 * line.seconds:.2f}", f"{share:.0%}", f"{used:.0%}")
        table.add_row(Text(key), *(Text(cell) for cell in cells))
    return table
