"""Reads what ONNX Runtime's profiler wrote: which nodes ran, when, and what they worked on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx

from edgeadapt.errors import BackendError
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.profile.grouping import Step, group_products
from edgeadapt.runtime.profile.parts import Group, Operation
from edgeadapt.runtime.profile.profiler import Record, Run

Shapes = Sequence[tuple[int, ...]]
_SUFFIX = "_kernel_time"
_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose")
_MATRICES = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
_SIZES = ("Shape", "Size")  # what they give changes with the image's size, not with the image


@dataclass(frozen=True)
class Event:
    """One node of one run; times in seconds."""

    name: str
    kind: str  # the ONNX operator
    index: int  # of the node in the library's graph
    begin: float
    seconds: float
    inputs: Shapes
    outputs: Shapes
    moved_bytes: int


def read_events(file: Path) -> list[list[Event]]:
    """The nodes of each run that was finished, in the order in which they began.

    Raises:
        BackendError: if it is not what ONNX Runtime writes.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in found if e["name"] == "model_run")
        nodes = sorted(
            (e for e in found if e["cat"] == "Node" and e["name"].endswith(_SUFFIX)),
            key=lambda event: event["ts"],
        )
        return [[_event(e, begin) for e in nodes if begin <= e["ts"] <= end] for begin, end in runs]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BackendError(
            f"the profile {file.name} of ONNX Runtime cannot be read ({error!r}).",
            "profile with the backend native, or with another version of onnxruntime.",
        ) from error


def record_of(runs: Sequence[Sequence[Event]], optimized: Path, fetched: Iterable[str]) -> Record:
    """What was measured, with what each product is there for.

    ``optimized`` is the graph as ONNX Runtime rearranged it, which gives the structure. All of its
    nodes run, or those that ``fetched`` is made of.

    Raises:
        BackendError: if runs or graph do not agree in their nodes.
    """
    graph = onnx.load(str(optimized), load_external_data=False).graph
    nodes: Sequence[Any] = graph.node
    if len(runs[0]) < len(nodes):
        nodes = _needed(nodes, fetched)
    nodes = _in_order(nodes, runs[0])
    for run in runs:
        if [event.kind for event in run] != [node.op_type for node in nodes]:
            raise BackendError(
                f"ONNX Runtime ran {len(run)} nodes where its graph has {len(nodes)}, or others: "
                "what took which time is not known.",
                "profile with the backend native, or with another version of onnxruntime.",
            )
    # A constant that was packed for a kernel has no shape any more in what the profiler writes.
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    operations = []
    for position, group in enumerate(_groups(nodes, fetched)):
        event, name = runs[0][position], next(iter(nodes[position].input[1:]), "")
        second = constants.get(name, event.inputs[1] if len(event.inputs) > 1 else ())
        title = _title(event, second, position)
        work = _flops(event, second)
        operations.append(Operation(title, event.kind, group, work, event.moved_bytes, "fp32"))
    return Record(operations, [Run([e.begin for e in r], [e.seconds for e in r]) for r in runs])


def _event(found: Mapping[str, Any], begin: int) -> Event:
    given = found["args"]
    sizes = ("parameter_size", "activation_size", "output_size")
    return Event(
        found["name"].removesuffix(_SUFFIX),
        given["op_name"],
        int(given["node_index"]),
        (found["ts"] - begin) * 1e-6,
        found["dur"] * 1e-6,
        _shapes(given["input_type_shape"]),
        _shapes(given["output_type_shape"]),
        sum(int(given[size]) for size in sizes),
    )


def _shapes(listed: Iterable[Mapping[str, Sequence[int]]]) -> Shapes:
    """Each is written as {"float": [1, 3, 64, 96]}."""
    return [tuple(shape) for one in listed for shape in one.values()]


def _in_order(nodes: Sequence[Any], run: Sequence[Event]) -> Sequence[Any]:
    """The nodes in the order in which they ran: most have no name. The library writes them in that
    order, or in the order of their numbers; if neither fits, they are given back as they are."""
    place = {index: place for place, index in enumerate(sorted(event.index for event in run))}
    if len(place) != len(nodes):
        return nodes
    for found in (nodes, [nodes[place[event.index]] for event in run]):
        pairs = zip(found, run, strict=True)
        if all(node.op_type == e.kind and node.name in ("", e.name) for node, e in pairs):
            return found
    return nodes


def _needed(nodes: Sequence[Any], fetched: Iterable[str]) -> list[Any]:
    """The nodes that these are made of, in their order."""
    wanted, found = set(fetched), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _groups(nodes: Sequence[Any], fetched: Iterable[str]) -> list[Group]:
    values = [name for name in fetched if not name.startswith(GRADIENT_PREFIX)]
    products = group_products([_step(node) for node in nodes], values, ["image"])
    return [group or "pointwise" for group in products]


def _step(node: Any) -> Step:
    reads = () if node.op_type in _SIZES else tuple(filter(None, node.input))
    if node.op_type in _CONVOLUTIONS:
        return Step(reads, tuple(node.output), node.input[:2], node.input[1:2])
    if node.op_type in _MATRICES:
        return Step(reads, tuple(node.output), node.input[:2], node.input[:2])
    return Step(reads, tuple(node.output))


def _flops(event: Event, second: tuple[int, ...]) -> int | None:
    """Multiplications and additions of a product; of anything else not known. ``second`` is the
    shape of what the first input is multiplied with."""
    if event.kind in _CONVOLUTIONS:
        image = event.inputs[0] if event.kind == "ConvTranspose" else event.outputs[0]
        return 2 * prod(image) * prod(second[1:])
    if event.kind in _MATRICES:
        # Whichever way round it lies, the first matrix is the result's rows by what is summed.
        summed = prod(event.inputs[0][-2:]) // max(event.outputs[0][-2], 1)
        return 2 * prod(event.outputs[0]) * summed
    return None


def _title(event: Event, second: tuple[int, ...], position: int) -> str:
    """What it does and at which size."""
    shape = event.outputs[0] if event.outputs else ()
    size = f"{shape[1]} @ {shape[2]}x{shape[3]}" if len(shape) == 4 else f"{prod(shape)}"
    if event.kind in _CONVOLUTIONS:
        kernel = "x".join(map(str, second[2:]))
        (_, channels, height, width), image = event.outputs[0], event.inputs[0]
        size = f"{image[1]}->{channels} {kernel} @ {height}x{width}"
    return f"{event.kind} {event.name} {size} #{position}"
