from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.bundle import RESTORE_GRAPH, open_bundle
from edgeadapt.runtime.cuda import show
from edgeadapt.runtime.cuda.plan import compile_graph as plan_for_cuda
from edgeadapt.runtime.plan.compile import Target, compile_graph
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.profile.operands import operands_of
from support.programs import Builder


def names(program: Program) -> list[tuple[list[str], list[str]]]:
    found = operands_of(program)
    return [([t.name for t in reads], [t.name for t in writes]) for reads, writes in found]


def check(program: Program) -> None:
    """Each tensor has one writer, and is read after it; every reading through memory shows."""
    writer: dict[str, int] = {}
    for position, (reads, writes) in enumerate(operands_of(program)):
        for operand in writes:
            assert operand.name not in writer
            writer[operand.name] = position
        for operand in reads:
            assert operand.name not in program.writers() or writer[operand.name] < position
        bases = {program.base(name) for name in program.ops[position].inputs.values()}
        assert {program.base(operand.name) for operand in reads} == bases
        for operand in (*reads, *writes):
            assert operand.shape == program.tensors[operand.name].shape


@pytest.mark.parametrize("scope", ["all", ""])
def test_a_step_of_the_network_that_ships_is_a_graph(scope: str) -> None:
    bundle = open_bundle("nano")
    graph = bundle.scope(scope).graph if scope else RESTORE_GRAPH
    steps = dict.fromkeys(bundle.scope(scope).parameters, 1.0) if scope else None
    check(compile_graph(bundle, graph, 64, 96, Target(), steps).program)


def test_so_is_one_for_a_gpu(tiny: Path) -> None:
    bundle = open_bundle(tiny)
    target, scope = show.cuda_target("fp16", None), bundle.scope("all")
    check(plan_for_cuda(bundle, scope.graph, 24, 36, target, scope.parameters).program)


def test_what_is_written_in_parts_goes_by_their_names() -> None:
    b = Builder()
    x, whole = b.tensor("x", (1, 2, 4, 4), storage="image"), b.tensor("whole", (1, 4, 4, 4))
    low = b.view("low", whole, (1, 2, 4, 4))
    high = b.view("high", whole, (1, 2, 4, 4), offset=32)
    y, z = b.tensor("y", (1, 2, 4, 4)), b.tensor("z", (1, 4, 4, 4))
    copy = (("copy", (("x", 0),)),)
    b.pointwise(low, copy, x)
    b.pointwise(y, copy, low)  # before the other part is there
    b.pointwise(high, copy, y)
    b.pointwise(z, copy, whole)
    program = b.program("z")
    assert names(program) == [
        (["x"], ["low"]),
        (["low"], ["y"]),
        (["y"], ["high"]),
        (["low", "high"], ["z"]),
    ]
    check(program)
