"""PyTorch module -> bundle: trace once, lower once, cut one graph for restoring, one for the loss,
one for each scope.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from torch import nn

from edgeadapt import __version__
from edgeadapt.bundle import (
    FORMAT_VERSION,
    LOSS_GRAPH,
    RESTORE_GRAPH,
    WEIGHTS,
    Adaptation,
    Bundle,
    ImageContract,
    Manifest,
    Model,
    Parameter,
    Scope,
    open_bundle,
    safetensors_layout,
    write_manifest,
)
from edgeadapt.errors import BundleError, ExportError
from edgeadapt.export.cut import cut
from edgeadapt.export.graph import GraphBuilder
from edgeadapt.export.lowering import lower
from edgeadapt.export.place import check_place
from edgeadapt.export.trace import Trace, check_adaptable, trace
from edgeadapt.files import atomic_folder
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.manifest import adaptation_problem, image_problem

BUILT_IN_SCOPES = ("all", "heads", "bias")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What the exporter is told beside the network."""

    model: Model
    adaptation: Adaptation
    scopes: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in BUILT_IN_SCOPES}
    )
    """Scope name -> "all", "heads", "bias" or a regular expression searched for in parameter names.
    """


def export_bundle(
    network: nn.Module, path: Path, options: ExportOptions, progress: Progress = lambda stage: None
) -> Bundle:
    """Export ``network`` (an `edgeadapt.export.trace.Adaptable`) to the folder ``path``, replacing
    a bundle there.

    ``progress`` is called with a few words before each stage. What was at ``path`` stays as it was
    until the new bundle has been read and found sound.

    Raises:
        ExportError: naming the output, value, operator, scope or parameter at fault.
    """
    check_place(path)
    check_adaptable(network)
    _check_values(network, options.adaptation)
    progress("tracing forward and backward pass")
    traced = trace(network)
    progress("lowering to ONNX")
    builder, values = lower(traced)
    table = _parameter_table(network)
    scopes = _scopes(table, traced, options)
    with atomic_folder(path) as folder:
        progress("writing weights and graphs")
        save_file({row.name: _array(network, row.name) for row in table}, str(folder / WEIGHTS))
        if list(safetensors_layout(folder / WEIGHTS)) != [row.name for row in table]:
            raise ExportError(
                "safetensors did not store the parameters in the order of their names."
            )
        _write_graphs(folder, builder, values, traced, table, scopes)
        write_manifest(folder, _manifest(network, options, table, scopes))
        return _verified(folder, path)  # what fails here is not put in place


def _check_values(network: Any, adaptation: Adaptation) -> None:
    """Refuse, before the work, values that no reader of the bundle would take."""
    names = {name for name, _ in network.named_parameters()}
    image = ImageContract(size_multiple=int(network.size_multiple))
    problem = adaptation_problem(adaptation, names) or image_problem(image)
    if problem:
        raise ExportError(f"{problem}.")


def _verified(folder: Path, path: Path) -> Bundle:
    """The bundle in ``folder``, read and checked, as the one it will be at ``path``."""
    try:
        manifest = open_bundle(folder).manifest
    except BundleError as error:
        message = error.message.replace(str(folder), str(path))
        raise ExportError(f"the export cannot be read back: {message}") from error
    return Bundle(path, manifest)


def _write_graphs(
    folder: Path,
    builder: GraphBuilder,
    values: Mapping[str, str],
    traced: Trace,
    table: Sequence[Parameter],
    scopes: Sequence[Scope],
) -> None:
    image = _info("image", (1, 3, "H", "W"))
    parameters = [_info(row.name, row.shape) for row in table]
    stored = _external(folder, table)
    infos = {
        "restored": _info("restored", (1, 3, "H", "W")),
        "loss": _info("loss", ()),
        "loss_terms": _info("loss_terms", (traced.terms,)),
        **{
            GRADIENT_PREFIX + row.name: _info(GRADIENT_PREFIX + row.name, row.shape)
            for row in table
        },
    }

    def write(file: str, names: Mapping[str, str], inputs: list[onnx.ValueInfoProto]) -> None:
        outputs = {name: values[key] for name, key in names.items()}
        model = cut(
            builder,
            inputs,
            outputs,
            [infos[name] for name in names],
            stored,
            file.removesuffix(".onnx"),
        )
        (folder / file).write_bytes(model.SerializeToString(deterministic=True))

    step = {"loss": "loss", "loss_terms": "loss_terms", "restored": "restored"}
    write(RESTORE_GRAPH, {"restored": "restored"}, [image])
    write(LOSS_GRAPH, step, [image, *parameters])
    for scope in scopes:
        gradients = {GRADIENT_PREFIX + name: name for name in scope.parameters}
        write(scope.graph, step | gradients, [image, *parameters])


def _parameter_table(network: Any) -> tuple[Parameter, ...]:
    groups = {name: group for group, names in network.parameter_groups().items() for name in names}
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    return tuple(Parameter(name, shapes[name], groups[name]) for name in sorted(shapes))


def _scopes(table: Sequence[Parameter], traced: Trace, options: ExportOptions) -> tuple[Scope, ...]:
    reached = [row for row in table if row.name in traced.outputs]
    scopes = []
    for name, pattern in options.scopes.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ExportError(f"scope name {name!r} must consist of letters, digits, _ and -.")
        chosen = [row.name for row in reached if _in_scope(row, pattern)]
        if chosen:
            scopes.append(Scope(name, f"adapt.{name}.onnx", pattern, tuple(chosen)))
        elif name != pattern or name not in BUILT_IN_SCOPES:
            # One of these may be empty: in a network without heads, or without biases.
            raise ExportError(
                f"scope {name!r}: no parameter that the loss depends on matches {pattern!r}.",
                f"the names look like {reached[0].name!r}.",
            )
    return tuple(scopes)


def _in_scope(row: Parameter, pattern: str) -> bool:
    if pattern == "all":
        return True
    if pattern == "heads":
        return row.group != "shared"
    if pattern == "bias":
        return row.name.rpartition(".")[2] == "bias"
    try:
        return re.search(pattern, row.name) is not None
    except re.error as error:
        raise ExportError(
            f"scope pattern {pattern!r} is not a regular expression: {error}."
        ) from error


def _external(folder: Path, table: Sequence[Parameter]) -> dict[str, onnx.TensorProto]:
    """Parameters as ONNX tensors whose bytes stay in the safetensors file."""
    layout = safetensors_layout(folder / WEIGHTS)
    tensors = {}
    for row in table:
        tensor = TensorProto(name=row.name, data_type=TensorProto.FLOAT, dims=row.shape)
        tensor.data_location = TensorProto.EXTERNAL
        offset, length = layout[row.name]
        for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        tensors[row.name] = tensor
    return tensors


def _manifest(
    network: Any, options: ExportOptions, table: tuple[Parameter, ...], scopes: tuple[Scope, ...]
) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        model=options.model,
        image=ImageContract(size_multiple=int(network.size_multiple)),
        adaptation=options.adaptation,
        parameters=table,
        scopes=scopes,
        files={},
        tools={
            "edgeadapt": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
    )


def _array(network: nn.Module, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    # Not ascontiguousarray, which makes a vector of a scalar.
    return np.array(network.get_parameter(name).detach().cpu().numpy(), dtype="<f4", order="C")


def _info(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
