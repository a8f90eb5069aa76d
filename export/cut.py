"""Cutting one standard ONNX model out of the lowered trace: only what its outputs need is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from edgeadapt.export.functions import DOMAIN, OPSET
from edgeadapt.export.graph import GraphBuilder

# The oldest that has everything used here; TensorRT 10.3 and ONNX Runtime 1.20 read it.
IR_VERSION = 9


def cut(
    builder: GraphBuilder,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Mapping[str, str],
    output_infos: Sequence[onnx.ValueInfoProto],
    initializers: Mapping[str, onnx.TensorProto],
    name: str,
) -> onnx.ModelProto:
    """A checked model with ``inputs``, whose outputs are the values ``outputs`` (output name ->
    value name).

    The backward pass of what no output needs is not in it. ``initializers`` are used where a node
    needs them and they are not inputs; the builder's constants likewise."""
    nodes = _needed(builder.nodes, set(outputs.values()))
    used = {value for node in nodes for value in node.input} | set(outputs.values())
    given = {value.name for value in inputs}
    constants = [
        tensor
        for key, tensor in {**builder.constants, **initializers}.items()
        if key in used and key not in given
    ]
    nodes = _rename(nodes, outputs)
    graph = helper.make_graph(nodes, name, list(inputs), list(output_infos), constants)
    functions = [
        builder.functions[key]
        for key in sorted({node.op_type for node in nodes if node.domain == DOMAIN})
    ]
    opsets = [helper.make_opsetid("", OPSET)]
    if functions:  # a forward graph is plain ONNX, down to its list of domains
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    return helper.make_model(
        graph,
        opset_imports=opsets,
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="edgeadapt",
    )


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):  # the builder adds nodes in an order in which they can run
        if wanted.intersection(node.output):
            kept.append(node)
            wanted = wanted | set(node.input)
    return kept[::-1]


def _rename(nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Give each output's value the output's name; a value that no node makes, or that has two
    names, is copied.
    """
    made = {value for node in nodes for value in node.output}
    names: dict[str, str] = {}
    copies = []
    for key, value in outputs.items():
        if value in made and value not in names:
            names[value] = key
        else:
            copies.append(helper.make_node("Identity", [names.get(value, value)], [key], key))
    renamed = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(value, value) for value in node.input]
        copy.output[:] = [names.get(value, value) for value in node.output]
        renamed.append(copy)
    return renamed + copies
