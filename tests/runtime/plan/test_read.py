"""The reader on the bundle nano: what the programs consist of, and where their values lie."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle, open_bundle
from edgeadapt.graphs import read_graph
from edgeadapt.runtime.plan import read_nodes
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.read import read
from support.reading import read_checked

GRAPHS = (RESTORE_GRAPH, LOSS_GRAPH, "adapt.all.onnx", "adapt.bias.onnx", "adapt.heads.onnx")
SIZES = ((32, 64), (96, 32), (720, 1280))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


@pytest.fixture(scope="module")
def step(bundle: Bundle) -> Program:
    return read(bundle, "adapt.all.onnx", 64, 96)


def nodes_of(bundle: Bundle, graph: str) -> Counter[str]:
    """How often each operator is used; a function without the attributes in its name."""
    nodes = read_graph(bundle.path / graph).graph.node
    return Counter(node.op_type.split("_")[0] for node in nodes)


def count(program: Program, kind: str, **at: object) -> int:
    """Operations of a kind with these attributes."""
    return sum(op.kind == kind and at.items() <= op.attributes.items() for op in program.ops)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_is_read_for_every_size(bundle: Bundle, graph: str, size: tuple[int, int]):
    height, width = size
    program = read_checked(bundle, graph, height, width)
    names = [value.name for value in read_graph(bundle.path / graph).graph.output]
    assert list(program.outputs) == names
    assert program.tensors["restored"].shape == (1, 3, height, width)


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_operation_of_the_graph_is_one_of_the_program(bundle: Bundle, graph: str):
    program, nodes = read(bundle, graph, 64, 96), nodes_of(bundle, graph)
    assert count(program, "conv", transposed=False) == nodes["Conv"]
    transposed = nodes["ConvTranspose"] + nodes["ConvInputGrad"]
    assert count(program, "conv", transposed=True) == transposed
    assert count(program, "conv_weight_grad") == nodes["ConvWeightGrad"]
    assert count(program, "resize") == nodes["Resize"]
    assert count(program, "resize_grad") == nodes["ResizeGrad"]
    assert count(program, "avg_pool") == nodes["AveragePool"]
    assert count(program, "reduce") == nodes["ReduceSum"] + nodes["ReduceMean"]


def test_inputs_and_outputs_lie_in_the_session_s_arrays(bundle: Bundle, step: Program):
    places = {name: (part.start, part.stop) for name, part in bundle.offsets().items()}
    assert step.tensors["image"].storage == "image"
    assert step.tensors["restored"].storage == "restored"
    assert step.tensors["loss"].storage == step.tensors["loss_terms"].storage == "arena"
    for row in bundle.manifest.parameters:
        for name, storage in ((row.name, "weights"), (f"grad.{row.name}", "gradients")):
            tensor = step.tensors[name]
            assert (tensor.storage, tensor.shape, tensor.view) == (storage, row.shape, None)
            assert (tensor.offset, tensor.offset + tensor.size) == places[row.name]


def test_gradients_are_written_where_they_are_computed(step: Program):
    for op in step.ops:
        if any(step.tensors[name].storage == "gradients" for name in op.outputs.values()):
            copies = op.kind == "pointwise" and op.attributes["expression"][-1][0] == "copy"
            assert not copies, op


def test_restoring_uses_the_session_s_weights_too(bundle: Bundle):
    program = read(bundle, RESTORE_GRAPH, 32, 32)
    parameters = {row.name for row in bundle.manifest.parameters}
    used = {op.inputs["weight"] for op in program.ops if op.kind == "conv"}
    assert used <= parameters
    assert {program.tensors[name].storage for name in used} == {"weights"}


@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_that_depends_on_the_size_is_left_to_the_program(bundle: Bundle, graph: str):
    small, large = (read(bundle, graph, *size) for size in ((32, 32), (720, 1280)))
    assert [op.kind for op in small.ops] == [op.kind for op in large.ops]
    assert {tensor.dtype for tensor in large.tensors.values()} == {"f32"}
    assert not large.constants


def test_a_graph_is_parsed_once_for_all_sizes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    parsed = []

    def note(file: object) -> onnx.ModelProto:
        parsed.append(file)
        return read_graph(file)  # type: ignore[arg-type]

    monkeypatch.setattr(read_nodes, "read_graph", note)
    again = open_bundle("nano")
    programs = [read(again, LOSS_GRAPH, *size) for size in (*SIZES, SIZES[0])]
    assert parsed == [again.path / LOSS_GRAPH]
    assert programs[0] == programs[-1]
    assert programs[0] != programs[1]


def test_the_mean_of_a_loss_is_over_the_pixels_there_are(bundle: Bundle):
    program = read(bundle, LOSS_GRAPH, 64, 96)
    scales = [op.attributes["scale"] for op in program.ops if op.kind == "reduce"]
    # Of the reconstruction at each scale, then of the restored images of neighbouring scales.
    areas = [64 * 96 // 16, 64 * 96 // 4, 64 * 96, 64 * 96 // 16, 64 * 96 // 4]
    assert np.allclose(sorted(scales), sorted([1.0, *(1 / (3 * area) for area in areas)]))
