"""What is known of a graph's values before it is decided which of them are held in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from edgeadapt.cast_rules import Rule, rule_of
from edgeadapt.errors import BundleError
from edgeadapt.graphs import GRADIENT_PREFIX

IMAGE = "image"


@dataclass(frozen=True)
class Facts:
    """Sets of values by their names; see `find_facts`."""

    names: frozenset[str]  # of all values
    floats: frozenset[str]  # float32
    constants: dict[str, npt.NDArray[np.float32]]  # of those, the ones known now
    varying: frozenset[str]  # depend on the image or its size; all others on parameters alone
    gradients: frozenset[str]  # only gradients of parameters follow, and it is no moved activation
    rounded: frozenset[str]  # everything that follows reads it in 16 bits

    def fresh(self, name: str) -> str:
        """``name``, changed if the graph has it: parameters are called as a user likes."""
        while name in self.names:
            name += "_"
        return name


def find_facts(model: onnx.ModelProto) -> Facts:
    """Look at a model without functions.

    Raises:
        BundleError: if a node has a graph of its own, or a value no type.
    """
    nodes = list(model.graph.node)
    for node in nodes:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise BundleError(
                f"{node.op_type} {node.output[0]!r} has a graph of its own, which cannot be "
                "brought to 16 bits.",
                "use fp32.",
            )
    floats = _floats(model)
    varying = _varying(nodes)
    return Facts(
        names=_names(model),
        floats=floats,
        constants=_constants(model),
        varying=varying,
        gradients=_gradients(model, nodes, varying, floats),
        rounded=_rounded(model, nodes, varying, floats),
    )


def is_product_with_weights(node: onnx.NodeProto, varying: frozenset[str]) -> bool:
    """Whether a node's products are as many for any size of the image."""
    return rule_of(node.op_type, node.domain) is Rule.PRODUCT and not (
        node.input[0] in varying and node.input[1] in varying
    )


def _names(model: onnx.ModelProto) -> frozenset[str]:
    graph = model.graph
    found = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    return frozenset(found.union(*(node.output for node in graph.node)))


def _floats(model: onnx.ModelProto) -> frozenset[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in filter(None, node.output):
            if not types.get(name):
                raise BundleError(
                    f"the type of {name!r} ({node.op_type}) cannot be told, so that the graph "
                    "cannot be brought to 16 bits.",
                    "use fp32.",
                )
    return frozenset(name for name, kind in types.items() if kind == TensorProto.FLOAT)


def _constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.data_location != TensorProto.EXTERNAL
    }
    for node in model.graph.node:
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, TensorProto):
                value = numpy_helper.to_array(value)
            if attribute.name in ("value", "value_float", "value_floats"):
                found[node.output[0]] = np.asarray(value)
    return {name: value for name, value in found.items() if value.dtype.kind == "f"}


def _varying(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    found = {IMAGE}
    for node in nodes:
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return frozenset(found)


def _gradients(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    varying: frozenset[str],
    floats: frozenset[str],
) -> frozenset[str]:
    names = [value.name for value in model.graph.output]
    forward = {name for name in names if not name.startswith(GRADIENT_PREFIX)}
    for node in reversed(nodes):
        if not forward.isdisjoint(node.output):
            forward.update(node.input)
    found: set[str] = set()
    if len(forward & set(names)) == len(names):
        return frozenset()
    for node in nodes:
        if not forward.isdisjoint(node.output):
            continue
        moved = rule_of(node.op_type, node.domain) is Rule.MOVE and found.isdisjoint(node.input)
        if not moved:
            found.update(name for name in node.output if name in floats and name in varying)
    return frozenset(found)


def _rounded(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    varying: frozenset[str],
    floats: frozenset[str],
) -> frozenset[str]:
    kept = {value.name for value in model.graph.output}
    read: set[str] = set()
    for node in reversed(nodes):
        rule = rule_of(node.op_type, node.domain)
        outputs = [name for name in node.output if name in floats]
        follows = rule is Rule.MOVE and all(n in read and n not in kept for n in outputs)
        read.update(node.input)
        if not (is_product_with_weights(node, varying) or follows or rule is Rule.SIZE):
            kept.update(node.input)
    return frozenset(read - kept)
