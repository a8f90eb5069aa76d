"""A plan as text: what runs, in which order, what it computes and moves, what it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadapt.runtime.plan.compile import Plan
from edgeadapt.runtime.plan.cost import flops, traffic
from edgeadapt.runtime.plan.ir import Op, Program, Storage
from edgeadapt.runtime.plan.lifetimes import live_bytes, no_scratch

MIB = 2**20
_MOST_SHAPES = 12  # in a cell; an operation on all parameters has hundreds
_BESIDE: tuple[Storage, ...] = ("image", "restored", "weights", "gradients", "constant")


@dataclass(frozen=True)
class Row:
    """One operation of a plan."""

    kind: str
    details: str
    reads: str
    writes: str
    flops: int
    moved_bytes: int  # each operand once
    live_bytes: int  # of the arena, while it runs; without working memory
    origin: str


def rows(plan: Plan) -> list[Row]:
    """Every operation, in order."""
    program = plan.program
    live = live_bytes(program, no_scratch)
    return [
        Row(
            op.kind,
            _details(op),
            _shapes(program, op.inputs.values()),
            _shapes(program, op.outputs.values()),
            flops(op, program),
            traffic(op, program),
            live[position],
            op.origin,
        )
        for position, op in enumerate(program.ops)
    ]


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan for JSON."""
    listed = rows(plan)
    return {
        "arena_bytes": plan.placement.arena_bytes,
        "fullest_moment_bytes": plan.placement.lower_bound_bytes,
        "beside_bytes": beside_bytes(plan.program),
        "flops": sum(row.flops for row in listed),
        "moved_bytes": sum(row.moved_bytes for row in listed),
        "operations": [vars(row) for row in listed],
    }


def beside_bytes(program: Program) -> int:
    """What the program uses outside of the arena: images, weights, gradients, constants."""
    places = {
        (t.storage, t.offset if t.storage in ("weights", "gradients") else t.name): t.nbytes
        for t in program.tensors.values()
        if t.storage in _BESIDE and t.view is None
    }
    return sum(places.values())


def print_plan(plan: Plan, out: Console) -> None:
    """Print the operations, the sums for each kind, and the memory."""
    listed = rows(plan)
    table = _table("#", "operation", "reads", "writes", "MFLOP", "MiB moved", "MiB live", text=4)
    for number, row in enumerate(listed):
        name = f"{row.kind} {row.details}".rstrip()
        numbers = (f"{row.flops / 1e6:.2f}", _mib(row.moved_bytes), _mib(row.live_bytes))
        _add(table, f"{number}", name, row.reads, row.writes, *numbers)
    out.print(table)
    out.print(_totals(listed))
    placement = plan.placement
    out.print(
        Text(
            f"arena {_mib(placement.arena_bytes)} MiB, {_mib(placement.lower_bound_bytes)} MiB in"
            f" use at the fullest moment; images, weights, gradients and constants"
            f" {_mib(beside_bytes(plan.program))} MiB"
        ),
        soft_wrap=True,
    )


def _totals(listed: list[Row]) -> Table:
    """A line for each kind, the most work first, and one for all."""
    table = _table("kind", "operations", "GFLOP", "share", "MiB moved", text=1)
    every = max(sum(row.flops for row in listed), 1)
    kinds = sorted(
        dict.fromkeys(row.kind for row in listed),
        key=lambda kind: -sum(row.flops for row in listed if row.kind == kind),
    )
    for kind in (*kinds, "all"):
        chosen = [row for row in listed if kind in (row.kind, "all")]
        work = sum(row.flops for row in chosen)
        moved = _mib(sum(row.moved_bytes for row in chosen))
        _add(table, kind, f"{len(chosen)}", f"{work / 1e9:.3f}", f"{work / every:.1%}", moved)
    return table


def _details(op: Op) -> str:
    """What distinguishes an operation from others of its kind, in a few characters."""
    at = op.attributes
    words = []
    if "kernel" in at:
        stride = "" if set(at["strides"]) == {1} else f"/{at['strides'][0]}"
        words.append("x".join(map(str, at["kernel"])) + stride)
    words += ["transposed"] if at.get("transposed") else []
    words += [f"{at['mode']}"] if "mode" in at else []
    words += [f"x{at['scale']:g}"] if op.kind in ("resize", "resize_grad") else []
    words += [at["how"]] if "how" in at else []
    words += [" ".join(step[0] for step in at["expression"])] if "expression" in at else []
    words += [f"+{role}" for role in ("bias", "add0", "add1", "add") if role in op.inputs]
    words += ["leaky"] if at.get("slope") is not None else []
    words += [f"+{role}" for role in ("post", "mask") if role in op.inputs]
    words += ["+bias"] if "bias" in op.outputs else []
    words += ["sum"] if "sum_weight" in op.inputs else []
    return " ".join(words)


def _shapes(program: Program, names: Iterable[str]) -> str:
    """Shapes without the leading 1 of an image, and the type where it is not f32."""
    found = []
    for name in names:
        tensor = program.tensors[name]
        shape = (
            tensor.shape[1:] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else tensor.shape
        )
        text = "x".join(map(str, shape)) or "1"
        found.append(text if tensor.dtype == "f32" else f"{text} {tensor.dtype}")
    if len(found) > _MOST_SHAPES:
        found[_MOST_SHAPES - 1 :] = [f"... ({len(found)})"]
    return ", ".join(found)


def _table(*columns: str, text: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < text else "right", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:.2f}"
