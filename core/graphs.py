"""What the graphs of a bundle must look like, checked before an engine opens them."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle
from edgeadapt.errors import BundleError

GRADIENT_PREFIX = "grad."


def check_graphs(bundle: Bundle) -> None:
    """Check names and order of inputs and outputs, parameter shapes and external data of every graph in the bundle.

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
        raise BundleError(f"{file}: not an ONNX file ({error}).", "export the bundle again.") from error


def _check_graph(bundle: Bundle, name: str, inputs: list[str], outputs: list[str]) -> None:
    file = bundle.path / name
    model = read_graph(file)
    for kind, wanted, values in (("inputs", inputs, model.graph.input), ("outputs", outputs, model.graph.output)):
        got = [value.name for value in values]
        if got != wanted:
            odd = next((a or b for a, b in zip(got + [""] * len(wanted), wanted, strict=False) if a != b), got[-1])
            raise BundleError(f"{file}: {kind} do not match the manifest, starting at {odd!r}.", "export it again.")
    shapes = {row.name: row.shape for row in bundle.manifest.parameters}
    for value in model.graph.input[1:]:
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        if shape != shapes[value.name]:
            raise BundleError(f"{file}: parameter {value.name!r} is {shape}, expected {shapes[value.name]}.")
    _check_external_data(bundle, file, model)


def _check_external_data(bundle: Bundle, file: Path, model: onnx.ModelProto) -> None:
    """Refuse external data that is not a listed file of the bundle: the path comes from the file, so from anyone."""
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if tensor.data_location == onnx.TensorProto.EXTERNAL and location not in bundle.manifest.files:
            raise BundleError(
                f"{file}: tensor {tensor.name!r} refers to {location!r}, which is not a file of the bundle.",
                "do not use this bundle unless you know who made it.",
            )


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    tensors = list(model.graph.initializer)
    for nodes in [model.graph.node, *(function.node for function in model.functions)]:
        for node in nodes:
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors
    return tensors
