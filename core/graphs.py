"""What the graphs of a bundle must look like, checked before an engine opens them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import BundleError

GRADIENT_PREFIX = "grad."
Shape = tuple[int | None, ...]  # None: a side of any fixed length
_SYMBOLIC = 0  # what ONNX has for a side without a length


def check_graphs(bundle: Bundle) -> None:
    """Check every graph: names and order of inputs and outputs, their types, external data.

    Raises:
        BundleError: naming the graph and what is wrong with it.
    """
    parameters = [row.name for row in bundle.manifest.parameters]
    step_outputs = ["loss", "loss_terms", "restored"]
    _check_graph(bundle, RESTORE_GRAPH, ["image"], ["restored"])
    _check_graph(bundle, LOSS_GRAPH, ["image", *parameters], step_outputs)
    for scope in bundle.manifest.scopes:
        gradients = [GRADIENT_PREFIX + name for name in scope.parameters]
        _check_graph(bundle, scope.graph, ["image", *parameters], step_outputs + gradients)


def read_graph(file: Path) -> onnx.ModelProto:
    """Parse an ONNX file without following its external data.

    Raises:
        BundleError: if the file is not ONNX.
    """
    try:
        return onnx.load(file, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise BundleError(
            f"{file}: not an ONNX file ({error}).", "export the bundle again."
        ) from error


def _check_graph(bundle: Bundle, name: str, inputs: list[str], outputs: list[str]) -> None:
    file = bundle.path / name
    model = read_graph(file)
    try:
        _check_names(file, "inputs", [value.name for value in model.graph.input], inputs)
        _check_names(file, "outputs", [value.name for value in model.graph.output], outputs)
        shapes = _shapes(bundle)
        for value in model.graph.input:
            _check_value(file, "input", value, shapes[value.name])
        for value in model.graph.output:
            _check_value(file, "output", value, shapes[value.name])
        _check_external_data(bundle, file, model)
    except UnicodeDecodeError as error:  # protobuf decodes a string when it is looked at
        raise BundleError(
            f"{file}: not an ONNX file ({error}).", "export the bundle again."
        ) from error


def _check_names(file: Path, kind: str, got: list[str], wanted: list[str]) -> None:
    for index in range(max(len(got), len(wanted))):
        have = got[index] if index < len(got) else "nothing"
        want = wanted[index] if index < len(wanted) else "nothing"
        if have != want:
            raise BundleError(
                f"{file}: {kind} do not match the manifest: {have!r} in place of {want!r}.",
                "export the bundle again.",
            )


def _shapes(bundle: Bundle) -> dict[str, Shape]:
    """The shape of everything that a graph may take or give."""
    shapes: dict[str, Shape] = {}
    for row in bundle.manifest.parameters:
        shapes[row.name] = shapes[GRADIENT_PREFIX + row.name] = row.shape
    # A fixed side of an image would mean a graph for one image size only.
    image: Shape = (1, 3, _SYMBOLIC, _SYMBOLIC)
    return shapes | {"image": image, "restored": image, "loss": (), "loss_terms": (None,)}


def _check_value(file: Path, kind: str, value: onnx.ValueInfoProto, shape: Shape) -> None:
    tensor = value.type.tensor_type
    sides = tuple(dim.dim_value for dim in tensor.shape.dim)
    # A tensor without a shape has no sides to compare either, but is no scalar.
    got = str(sides) if tensor.HasField("shape") else "without a shape"
    same = tensor.HasField("shape") and len(sides) == len(shape)
    same = same and all(a >= 1 if b is None else a == b for a, b in zip(sides, shape, strict=True))
    if tensor.elem_type != onnx.TensorProto.FLOAT or not same:
        raise BundleError(
            f"{file}: {kind} {value.name!r} must be float32 {_written(shape)}, got ONNX type "
            f"{tensor.elem_type} {got} (0: any).",
            "export the bundle again.",
        )


def _written(shape: Shape) -> str:
    return str(shape).replace("None", "terms")


def _check_external_data(bundle: Bundle, file: Path, model: onnx.ModelProto) -> None:
    """Refuse external data that is no file of the bundle: the path in it can come from anyone."""
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data:
            continue
        locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if len(locations) != 1 or locations[0] not in bundle.manifest.files:
            where = locations[0] if locations else ""
            raise BundleError(
                f"{file}: tensor {tensor.name!r} refers to {where!r}, which is not a file of the "
                "bundle.",
                "do not use this bundle unless you know who made it.",
            )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(function.attribute_proto)
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    """Tensors in attributes, and in the graphs that If and Loop carry there."""
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
