"""Lowerings of padding and of its gradients."""

from __future__ import annotations

from collections.abc import Sequence

from edgeadapt.export.functions import pad_grad
from edgeadapt.export.graph import GraphBuilder, Size, Value
from edgeadapt.export.lowering import lowers


@lowers("edgeadapt.constant_pad.default")
def constant_pad(graph: GraphBuilder, x: Value, pads: list[Size], value: float = 0.0) -> str:
    return graph.op("Pad", x, _pads(graph, x, pads), graph.scalar(value, x.dtype))


@lowers("aten.reflection_pad2d.default")
def reflection_pad(graph: GraphBuilder, x: Value, pads: list[int]) -> str:
    return graph.op("Pad", x, _pads(graph, x, pads), mode="reflect")


@lowers("aten.replication_pad2d.default")
def replication_pad(graph: GraphBuilder, x: Value, pads: list[int]) -> str:
    return graph.op("Pad", x, _pads(graph, x, pads), mode="edge")


def _pads(graph: GraphBuilder, x: Value, pads: Sequence[Size]) -> str:
    """PyTorch lists (begin, end) from the last axis backwards; ONNX all begins, then all ends, from
    the first.
    """
    untouched = [0] * (x.rank - len(pads) // 2)
    return graph.sizes([*untouched, *pads[::2][::-1], *untouched, *pads[1::2][::-1]])


@lowers("aten.reflection_pad2d_backward.default")
def reflection_pad_gradient(graph: GraphBuilder, grad_y: Value, x: Value, pads: list[int]) -> str:
    return graph.call(pad_grad("reflect", pads), grad_y, mode="reflect", pads=list(pads))


@lowers("aten.replication_pad2d_backward.default")
def replication_pad_gradient(graph: GraphBuilder, grad_y: Value, x: Value, pads: list[int]) -> str:
    return graph.call(pad_grad("edge", pads), grad_y, mode="edge", pads=list(pads))
