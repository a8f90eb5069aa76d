"""The graph of a bundle as plain Python: parsed once, kept as long as the bundle is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgeadapt.bundle import Bundle
from edgeadapt.graphs import read_graph

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """An attribute in the body of a function that stands for one of the call's."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation of the graph; ``""`` among the inputs is one that is left out."""

    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its first result, which is what people find it by."""
        return self.outputs[0]


@dataclass(frozen=True)
class Function:
    """A local function of the model."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    defaults: Mapping[str, Any]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Graph:
    """What of a graph does not depend on the image's size."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    functions: Mapping[tuple[str, str], Function]  # by domain and name
    constants: Mapping[str, Array]


_PARSED: WeakKeyDictionary[Bundle, dict[str, Graph]] = WeakKeyDictionary()


def parse(bundle: Bundle, name: str) -> Graph:
    """The graph called ``name`` (its file's name).

    Initializers that are parameters of the bundle are left out: their values are the session's.
    """
    graphs = _PARSED.setdefault(bundle, {})
    if name not in graphs:
        graphs[name] = _parse(bundle, name)
    return graphs[name]


def _parse(bundle: Bundle, name: str) -> Graph:
    model = read_graph(bundle.path / name)
    parameters = {row.name for row in bundle.manifest.parameters}
    folder = str(bundle.path)
    return Graph(
        name,
        tuple(value.name for value in model.graph.input),
        tuple(value.name for value in model.graph.output),
        _nodes(model.graph.node),
        {(function.domain, function.name): _function(function) for function in model.functions},
        {
            tensor.name: numpy_helper.to_array(tensor, folder)
            for tensor in model.graph.initializer
            if tensor.name not in parameters
        },
    )


def _nodes(nodes: Iterable[onnx.NodeProto]) -> tuple[Node, ...]:
    return tuple(
        Node(
            node.op_type,
            "" if node.domain == "ai.onnx" else node.domain,
            tuple(node.input),
            tuple(node.output),
            {attribute.name: _attribute(attribute) for attribute in node.attribute},
        )
        for node in nodes
    )


def _function(function: onnx.FunctionProto) -> Function:
    return Function(
        tuple(function.input),
        tuple(function.output),
        {attribute.name: _attribute(attribute) for attribute in function.attribute_proto},
        _nodes(function.node),
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    if attribute.ref_attr_name:
        return Reference(attribute.ref_attr_name)
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type == onnx.AttributeProto.FLOAT:
        return float(np.float32(value))
    return tuple(value) if attribute.type == onnx.AttributeProto.INTS else value
