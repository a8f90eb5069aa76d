"""All fusions and the order of operations on whole networks: the same results, fewer operations."""

from __future__ import annotations

from time import perf_counter

import pytest

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle, open_bundle
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.read import read
from edgeadapt.runtime.plan.schedule import peak_bytes, schedule
from support.exported import MAKE, exported
from support.fusing import assert_same, kinds

GRAPHS = ("restore.onnx", "loss.onnx", "adapt.all.onnx", "adapt.bias.onnx", "adapt.heads.onnx")


def assert_planned(bundle: Bundle, graph: str, height: int, width: int) -> Program:
    """Fuse and order; nothing but the number of operations and the memory may change."""
    program = read(bundle, graph, height, width)
    fused = assert_same(program, fuse(program))
    ordered = assert_same(fused, schedule(fused))
    assert "concat" not in kinds(ordered)
    assert len(ordered.ops) <= len(program.ops)
    assert peak_bytes(ordered) <= peak_bytes(fused)
    # Not always less than before: a sum of many terms in one operation holds all of them at once.
    assert peak_bytes(ordered) <= 1.25 * peak_bytes(program)
    return ordered


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return open_bundle("nano")


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_bundle_nano(graph: str, nano: Bundle):
    assert_planned(nano, graph, 48, 80)


@pytest.mark.parametrize("name", MAKE)
def test_networks(name: str):
    bundle = exported(name)
    size = 3 * bundle.manifest.image.size_multiple
    for graph in (RESTORE_GRAPH, LOSS_GRAPH, "adapt.all.onnx"):
        assert_planned(bundle, graph, size, 2 * size)


def test_in_a_restoration_convolutions_do_all_but_the_resizing(nano: Bundle):
    fused = fuse(read(nano, RESTORE_GRAPH, 48, 80))
    assert kinds(fused).keys() == {"avg_pool", "conv", "resize"}


def test_in_an_adaptation_step_only_the_residuals_are_added_apart(nano: Bundle):
    program = fuse(read(nano, "adapt.all.onnx", 48, 80))
    found = kinds(program)
    del found["conv"], found["conv_weight_grad"]
    # A residual is read by the auxiliary branch as it is, and added to the image: three scales of
    # three channels. The sum of the loss's terms is a reduction of five numbers. Neighbouring
    # scales must agree: two more terms, the finer image made half as large, and two sums of the
    # gradients that a restored image gets from both of its neighbours.
    assert found == {
        "avg_pool": 4,
        "avg_pool_grad": 2,
        "l1_loss": 5,
        "pointwise": 5,
        "reduce": 1,
        "resize": 8,
        "resize_grad": 6,
    }
    for op in program:
        if op.kind == "pointwise":
            assert program.tensors[op.outputs["y"]].shape[1] == 3
        if op.kind == "conv_weight_grad":
            assert "bias" in op.outputs


def test_every_leaky_and_its_derivative_is_fused(nano: Bundle):
    program = read(nano, "adapt.all.onnx", 48, 80)
    functions = [
        function
        for op in program
        if op.kind == "pointwise"
        for function, _ in op.attributes["expression"]
    ]
    convolutions = [op for op in fuse(program) if op.kind == "conv"]
    slopes = sum(op.attributes["slope"] is not None for op in convolutions)
    masks = sum("mask" in op.inputs for op in convolutions)
    assert (slopes, masks) == (functions.count("leaky"), functions.count("leaky_grad"))


def test_planning_takes_a_fraction_of_a_second(nano: Bundle):
    program = read(nano, "adapt.all.onnx", 720, 1280)
    times = []
    for _ in range(3):
        begin = perf_counter()
        schedule(fuse(program))
        times.append(perf_counter() - begin)
    assert min(times) < 1.0  # 0.15 s on an idle machine
