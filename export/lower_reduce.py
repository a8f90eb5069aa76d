"""Lowerings of reductions, and of products of matrices."""

from __future__ import annotations

from typing import Any

import torch

from edgeadapt.errors import ExportError
from edgeadapt.export.graph import GraphBuilder, Size, Value, onnx_dtype
from edgeadapt.export.lowering import lowers


@lowers("aten.sum.dim_IntList")
def sum_over(
    graph: GraphBuilder,
    x: Value,
    axes: list[int],
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    summands = _summands(graph, x, dtype)
    return graph.op("ReduceSum", summands, graph.ints(*axes), keepdims=int(keepdim))


def _summands(graph: GraphBuilder, x: Value, dtype: torch.dtype | None) -> str:
    """PyTorch counts the true among booleans, in int64."""
    integers = not x.dtype.is_floating_point
    return graph.scalar(x, dtype or (torch.int64 if integers else x.dtype))


@lowers("aten.mean.default")
def mean(graph: GraphBuilder, x: Value, *, dtype: Any = None) -> str:
    return graph.op("ReduceMean", x, keepdims=0)


@lowers("aten.mean.dim")
def mean_over(
    graph: GraphBuilder, x: Value, axes: list[int], keepdim: bool = False, *, dtype: Any = None
) -> str:
    return graph.op("ReduceMean", x, graph.ints(*axes), keepdims=int(keepdim))


@lowers("aten.amax.default")
def largest(graph: GraphBuilder, x: Value, axes: list[int], keepdim: bool = False) -> str:
    return graph.op("ReduceMax", x, graph.ints(*axes), keepdims=int(keepdim))


@lowers("aten.amin.default")
def smallest(graph: GraphBuilder, x: Value, axes: list[int], keepdim: bool = False) -> str:
    return graph.op("ReduceMin", x, graph.ints(*axes), keepdims=int(keepdim))


@lowers("aten.var_mean.correction")
def variance_and_mean(
    graph: GraphBuilder,
    x: Value,
    axes: list[int],
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> list[str]:
    where = graph.ints(*axes)
    centred = graph.op("Sub", x, graph.op("ReduceMean", x, where, keepdims=1))
    square = graph.op("Mul", centred, centred)
    variance, mean = (
        graph.op("ReduceMean", value, where, keepdims=int(keepdim)) for value in (square, x.name)
    )
    less = 1 if correction is None else correction
    if less:
        sizes = graph.op("Gather", graph.op("Shape", x), where)
        product = graph.op("ReduceProd", sizes, keepdims=0)
        count = graph.op("Cast", product, to=onnx_dtype(x.dtype))
        rest = graph.op("Sub", count, graph.scalar(less, x.dtype))
        variance = graph.op("Mul", variance, graph.op("Div", count, rest))
    return [variance, mean]


@lowers("aten.var.correction")
def variance(
    graph: GraphBuilder,
    x: Value,
    axes: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> str:
    over = list(range(x.rank)) if axes is None else axes
    return variance_and_mean(graph, x, over, correction=correction, keepdim=keepdim)[0]


@lowers("aten.linalg_vector_norm.default")
def vector_norm(
    graph: GraphBuilder,
    x: Value,
    order: float = 2,
    axes: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> str:
    kinds = {1: "ReduceL1", 2: "ReduceL2"}
    if order not in kinds:
        raise ExportError(f"a vector norm has a lowering only of order 1 or 2, got {order}.")
    where = list(range(x.rank)) if axes is None else axes
    return graph.op(kinds[int(order)], x, graph.ints(*where), keepdims=int(keepdim))


@lowers("aten.native_group_norm.default")
def group_norm(
    graph: GraphBuilder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    batch: Size,
    channels: Size,
    area: Size,
    groups: int,
    epsilon: float,
) -> list[str]:
    rows = Value(graph.op("Reshape", x, graph.ints(0, groups, -1)), x.meta)
    variance, mean = variance_and_mean(graph, rows, [2], correction=0, keepdim=True)
    shifted = graph.op("Add", variance, graph.scalar(epsilon, x.dtype))
    scale = graph.op("Reciprocal", graph.op("Sqrt", shifted))
    normal = graph.op("Mul", graph.op("Sub", rows, mean), scale)
    result = graph.op("Reshape", normal, graph.op("Shape", x))
    column = graph.ints(-1, *[1] * (x.rank - 2))
    for kind, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            result = graph.op(kind, result, graph.op("Reshape", factor, column))
    flat = graph.ints(2)
    return [result, graph.op("Squeeze", mean, flat), graph.op("Squeeze", scale, flat)]


@lowers("aten._softmax.default")
def softmax(graph: GraphBuilder, x: Value, axis: int, half_to_float: bool) -> str:
    return graph.op("Softmax", x, axis=axis)


@lowers("aten._log_softmax.default")
def log_softmax(graph: GraphBuilder, x: Value, axis: int, half_to_float: bool) -> str:
    return graph.op("LogSoftmax", x, axis=axis)


@lowers("aten.mm.default", "aten.bmm.default")
def product(graph: GraphBuilder, x: Value, y: Value) -> str:
    return graph.op("MatMul", x, y)
