"""What `edgeadapt info --plan` says about a plan."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from edgeadapt.cli import main
from edgeadapt.runtime.plan.compile import Plan
from edgeadapt.runtime.plan.cost import total_flops, traffic
from edgeadapt.runtime.plan.place import place
from edgeadapt.runtime.plan.show import beside_bytes, plan_document, print_plan, rows
from support.training_program import training_step

STEP = training_step((4, 8), 1, (16, 16))
PLAN = Plan(STEP, place(STEP))


def text():
    console = Console(file=io.StringIO(), width=200)
    print_plan(PLAN, console)
    return console.file.getvalue()


def test_every_operation_has_a_row_with_its_shapes():
    assert [row.kind for row in rows(PLAN)] == [op.kind for op in STEP.ops]
    first = rows(PLAN)[0]
    assert first.details == "3x3/2 leaky"
    assert (first.reads, first.writes) == ("3x16x16, 4x3x3x3", "4x8x8")
    assert "conv_weight_grad 3x3 sum" in text()
    assert "conv 3x3 transposed +add0 +mask" in text()


def test_the_numbers_are_those_of_the_plan():
    found = plan_document(PLAN)
    assert found["flops"] == total_flops(STEP)
    assert found["moved_bytes"] == sum(traffic(op, STEP) for op in STEP.ops)
    assert found["arena_bytes"] == PLAN.placement.arena_bytes
    assert max(row["live_bytes"] for row in found["operations"]) == found["fullest_moment_bytes"]
    assert f"{found['arena_bytes'] / 2**20:.2f} MiB" in text()
    kinds = [line.split() for line in text().splitlines()]
    (every,) = [words for words in kinds if words[:1] == ["all"]]
    assert every[1] == str(len(STEP.ops))
    assert float(every[2]) == pytest.approx(total_flops(STEP) / 1e9, abs=5e-4)


def test_memory_beside_the_arena_counts_each_place_once():
    # The image, the zeros that two scales are compared with, weights and gradients; a new weight
    # and a sum take the place of the old ones.
    weights = 4 * sum(
        t.size for t in STEP.tensors.values() if t.storage == "weights" and ".new" not in t.name
    )
    zeros = sum(t.nbytes for t in STEP.tensors.values() if t.storage == "constant")
    assert beside_bytes(STEP) == 4 * 3 * 256 + zeros + 2 * weights


def document(capsys, *arguments):
    assert main(["info", *map(str, arguments), "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_plans_for_the_padded_size(tiny: Path, capsys) -> None:
    found = document(capsys, tiny, "--size", "30x17")
    assert (found["width"], found["height"], found["graph"]) == (32, 20, "adapt.all.onnx")
    assert (
        document(capsys, tiny, "--size", "30x17", "--graph", "restore")["graph"] == "restore.onnx"
    )
    bias = document(capsys, tiny, "--size", "30x17", "--scope", "bias")
    assert bias["graph"] == "adapt.bias.onnx"
    assert main(["info", str(tiny), "--plan", "--size", "30x17"]) == 0
    assert "adapt.all.onnx for 32x20 in fp32" in capsys.readouterr().out


def test_the_command_meets_a_budget(capsys) -> None:
    size = ("nano", "--size", "256x256")
    free = document(capsys, *size)
    budget = 0.6 * free["arena_bytes"] / 2**20
    fitted = document(capsys, *size, "--memory-budget", budget)
    assert fitted["arena_bytes"] <= 0.6 * free["arena_bytes"]
    assert free["flops"] < fitted["flops"] < 1.2 * free["flops"]


def test_the_command_says_that_a_budget_is_too_small(tiny: Path, capsys) -> None:
    assert main(["info", str(tiny), "--plan", "--memory-budget", "0.1"]) == 2
    assert "memory budget: 0.1 MiB is too little" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1280", "0x720", "1280x", "1280*720", "-1x5", "123456x5", "axb"])
def test_a_size_that_is_none_is_refused(size: str, capsys) -> None:
    assert main(["info", "nano", "--plan", f"--size={size}"]) == 2
    wanted = "WIDTHxHEIGHT in pixels, such as 1280x720; each from 1 to 99999."
    assert f"'{size}' is no {wanted}" in capsys.readouterr().err
