"""What `edgeadapt info --plan --backend cuda` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.cli import main
from edgeadapt.runtime.cuda.calls import OWN
from edgeadapt.runtime.cuda.devices import device_names
from edgeadapt.runtime.cuda.plan import compile_graph
from edgeadapt.runtime.cuda.show import PRODUCTS, cuda_document, cuda_target, launches_of
from edgeadapt.runtime.plan.cost import total_flops, traffic
from edgeadapt.runtime.plan.ir import Program
from support.programs import Builder

NEG = (("neg", (("x", 0),)),)


def small() -> Program:
    """One pixel-wise operation, a pool and a convolution."""
    b = Builder()
    b.tensor("image", (1, 2, 8, 8), storage="image")
    b.tensor("w", (8, 2, 3, 3), storage="weights")
    b.tensor("a", (1, 2, 8, 8))
    b.tensor("x", (1, 2, 4, 4))
    b.tensor("packed", (9 * 2 * 8,))
    b.tensor("y", (1, 8, 4, 4))
    b.pointwise("a", NEG, "image")
    b.op("avg_pool", {"x": "a"}, {"y": "x"}, kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0))
    at = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    part = {**at, "group": 1, "transposed": False, "out_channels": (0, 8), "offset": 0}
    parts = ({**part, "count": 144},)
    b.op("pack_together", {"weight0": "w"}, {"y": "packed"}, parts=parts)
    b.conv("x", "packed", "y", {}, out_channels=(0, 8))
    return b.program("y")


def test_launches_and_bytes_of_a_small_program() -> None:
    found = launches_of(small(), OWN)
    assert (found.of_products, found.of_others) == (1, 3)
    elementwise = 4 * (128 + 128)
    least = 4 * (128 + 32) + 4 * (144 + 144) + 4 * (32 + 144 + 128)
    assert (found.moved_bytes, found.least_bytes) == (elementwise + least, least)
    assert found.excess == 1 + elementwise / least


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_default_network_moves_little_more_than_it_must(precision: str) -> None:
    bundle = open_bundle("nano")
    scope = bundle.scope("all")
    target = cuda_target(precision, None)  # type: ignore[arg-type]
    plan = compile_graph(bundle, scope.graph, 720, 1280, target, scope.parameters)
    found = launches_of(plan.program, OWN)
    assert found.of_others <= 45
    assert 1.0 < found.excess <= 1.25
    operands = sum(traffic(op, plan.program) for op in plan.program.ops)
    assert found.moved_bytes > operands  # working memory as well
    document = cuda_document(plan, precision)  # type: ignore[arg-type]
    assert document["flops"] == total_flops(plan.program)
    assert document["launches_of_products"] >= sum(op.kind in PRODUCTS for op in plan.program)
    assert set(document["devices"]) == set(device_names())
    times = [device["seconds"] for device in document["devices"].values()]
    assert min(times) == document["devices"]["h200"]["seconds"]
    assert all(device["fits"] for device in document["devices"].values())


def test_what_is_computed_again_is_more_than_the_least() -> None:
    bundle = open_bundle("nano")
    graph = bundle.scope("all").graph
    whole = compile_graph(bundle, graph, 256, 256, cuda_target("fp32", None))
    budget = int(0.6 * whole.placement.arena_bytes)
    less = compile_graph(bundle, graph, 256, 256, cuda_target("fp32", budget))
    plain, again = launches_of(whole.program, OWN), launches_of(less.program, OWN)
    assert less.placement.arena_bytes <= budget
    assert again.moved_bytes > plain.moved_bytes
    assert again.least_bytes == plain.least_bytes


def test_the_command_prints_it(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["info", str(tiny), "--plan", "--backend", "cuda", "--size", "64x48"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "launches:" in text
    assert "times the least" in text
    assert "update_together" in text
    assert "own kernel: " in text
    assert "cuDNN, where it is installed, is offered" in text
    for name in device_names():
        assert name in text
    assert main([*arguments, "--precision", "fp16", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["precision"] == "fp16"
    assert document["arena_bytes"] > 0
    assert {(offer["what"], offer["offered"]) for offer in document["cudnn"]} == {
        ("convolution", False)
    }
    assert main(["info", str(tiny), "--plan", "--precision", "fp16"]) != 0
    assert "computes in fp32 or bf16" in capsys.readouterr().err
