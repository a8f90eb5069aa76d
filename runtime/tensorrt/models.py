"""The ONNX models that engines are built of: a bundle's graph for one image size, complete.

    restore.onnx -> sizes fixed -> weights inside, or inputs -> casts of the precision

An engine takes and gives float32 whatever it computes in, so that it works on the buffers of the
CUDA engine; the casts are in the model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.casts import cast_model
from edgeadapt.errors import ConfigError
from edgeadapt.graphs import read_graph
from edgeadapt.runtime.backend import Precision

Weights = Literal["inputs", "refit", "constant"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
RESTORE, LOSS = "restore", "loss"
_ADAPT = "adapt."
# TensorRT-RTX 1.7 has no transposed convolution in bfloat16: "could not infer output types".
_BF16 = TensorProto.BFLOAT16
_NOT_IN_BF16 = ("ConvTranspose",)


def graph_names(bundle: Bundle) -> list[str]:
    """What can be asked for: restore, loss, and adapt.SCOPE for each scope."""
    return [RESTORE, LOSS, *(_ADAPT + scope.name for scope in bundle.manifest.scopes)]


def graph_file(bundle: Bundle, graph: str) -> str:
    """The file of a graph in the bundle.

    Raises:
        ConfigError: if there is no such graph.
        BundleError: if the bundle has no such scope.
    """
    if graph in (RESTORE, LOSS):
        return RESTORE_GRAPH if graph == RESTORE else LOSS_GRAPH
    if not graph.startswith(_ADAPT):
        raise ConfigError(f"graph must be one of {', '.join(graph_names(bundle))}, got {graph!r}.")
    return bundle.scope(graph.removeprefix(_ADAPT)).graph


def engine_model(
    bundle: Bundle,
    graph: str,
    size: tuple[int, int],
    precision: Precision,
    weights: Weights,
) -> onnx.ModelProto:
    """The model of an engine for images of ``size`` (height, width), multiples of the bundle's.

    With ``weights`` "inputs" every parameter that the graph uses is an input behind ``image``,
    float32 and of its shape, in the order of the parameter table. Otherwise it is in the model.

    Raises:
        ConfigError: if the graph cannot be had so.
        BundleError: if it cannot be brought to the precision.
    """
    file = graph_file(bundle, graph)
    check_size(bundle, size)
    if graph != RESTORE and weights != "inputs":
        raise ConfigError(
            f"weights must be inputs for the graph {graph}, got {weights!r}.",
            "only the restore graph has weights of its own.",
        )
    model = read_graph(bundle.path / file)
    load_external_data_for_model(model, str(bundle.path))
    _fix_size(model.graph, size)
    if weights == "inputs":
        _make_inputs(bundle, model.graph)
    cast = cast_model(model, "fp32" if precision == "tf32" else precision)
    if precision == "bf16":
        _widen(cast.graph, _NOT_IN_BF16)
    return cast


def used_parameters(bundle: Bundle, model: onnx.ModelProto) -> tuple[str, ...]:
    """The parameters that a model of `engine_model` takes or holds, in the order of the table."""
    graph = model.graph
    names = {value.name for value in (*graph.input, *graph.initializer)}
    return tuple(row.name for row in bundle.manifest.parameters if row.name in names)


def check_size(bundle: Bundle, size: tuple[int, int]) -> None:
    """Raise a ConfigError if images of ``size`` do not go through the network as they are."""
    multiple = bundle.manifest.image.size_multiple
    height, width = size
    if height % multiple or width % multiple:
        up = [-(-side // multiple) * multiple for side in size]
        raise ConfigError(
            f"the size must be multiples of {multiple} for this bundle, got {width}x{height}.",
            f"images of that size are padded to {up[1]}x{up[0]}: build for that.",
        )


def _fix_size(graph: onnx.GraphProto, size: tuple[int, int]) -> None:
    """Give the image its sides; those of the outputs follow."""
    for value in (*graph.input, *graph.output):
        if value.name in ("image", "restored"):
            sides = value.type.tensor_type.shape.dim
            for side, length in zip(sides[2:], size, strict=True):
                side.dim_value = length


def _widen(graph: onnx.GraphProto, operators: Collection[str]) -> None:
    """Let nodes that compute in bfloat16 compute in float32, and round what they give."""
    casts = {
        n.output[0]: n for n in graph.node if n.op_type == "Cast" and n.attribute[0].i == _BF16
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type not in operators or node.input[1] not in casts:
            nodes.append(node)
            continue
        wide = onnx.NodeProto()
        wide.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in casts:  # a value that there is in float32, as weights are
                wide.input[index] = casts[name].input[0]
                continue
            wide.input[index] = f"{node.output[0]}..wide{index}"
            nodes.append(_cast(name, wide.input[index], TensorProto.FLOAT))
        wide.output[0] = f"{node.output[0]}..wide"
        nodes += [wide, _cast(wide.output[0], node.output[0], _BF16)]
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=to)


def _make_inputs(bundle: Bundle, graph: onnx.GraphProto) -> None:
    """Every parameter that is used becomes an input, the rest is taken out."""
    used = {name for node in graph.node for name in node.input}
    rows = [row for row in bundle.manifest.parameters if row.name in used]
    parameters = {row.name for row in bundle.manifest.parameters}
    inputs = [value for value in graph.input if value.name not in parameters]
    constants = [tensor for tensor in graph.initializer if tensor.name not in parameters]
    inputs += [helper.make_tensor_value_info(r.name, TensorProto.FLOAT, r.shape) for r in rows]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(inputs)
    graph.initializer.extend(constants)
