"""Lowerings of operators that move or create elements, and of arithmetic on symbolic sizes."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from edgeadapt.errors import ExportError
from edgeadapt.export.graph import GraphBuilder, Number, Size, Value
from edgeadapt.export.lowering import Lowering, lowers

_END = np.iinfo(np.int64).max


@lowers(
    "aten.detach.default",
    "aten.alias.default",
    "aten.clone.default",
    "aten.lift_fresh_copy.default",
    "aten.contiguous.default",
)
def same(graph: GraphBuilder, x: Value, **_: Any) -> Value:
    return x


@lowers("aten.cat.default")
def cat(graph: GraphBuilder, tensors: list[Value], axis: int = 0) -> str:
    return graph.op("Concat", *tensors, axis=axis)


@lowers("aten.stack.default")
def stack(graph: GraphBuilder, tensors: list[Value], axis: int = 0) -> str:
    where = graph.ints(axis)
    return graph.op("Concat", *(graph.op("Unsqueeze", x, where) for x in tensors), axis=axis)


@lowers("aten.slice.Tensor")
def cut(
    graph: GraphBuilder,
    x: Value,
    axis: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> str:
    bounds = (
        graph.sizes([0 if start is None else start]),
        graph.sizes([_END if end is None else end]),
    )
    return graph.op("Slice", x, *bounds, graph.ints(axis), graph.ints(step))


@lowers("aten.slice_backward.default")
def cut_gradient(
    graph: GraphBuilder,
    grad_y: Value,
    sizes: list[Size],
    axis: int,
    start: Size,
    end: Size,
    step: int,
) -> str:
    if step != 1 or not isinstance(start, int) or start < 0:
        raise ExportError(
            "the gradient of a slice has a lowering only with step 1 and a constant start."
        )
    axis %= grad_y.rank
    wanted = graph.sizes([sizes[axis]])
    have = graph.op("Shape", grad_y, start=axis, end=axis + 1)
    after = graph.op("Sub", graph.op("Sub", wanted, have), graph.ints(start))
    return graph.op(
        "Pad", grad_y, graph.op("Concat", graph.ints(start), after, axis=0), "", graph.ints(axis)
    )


@lowers("aten.select.int")
def select(graph: GraphBuilder, x: Value, axis: int, index: int) -> str:
    return graph.op("Gather", x, graph.constant(index, np.int64), axis=axis)


@lowers("aten.split_with_sizes.default")
def split(graph: GraphBuilder, x: Value, sizes: list[int], axis: int = 0) -> list[str]:
    where, edges = graph.ints(axis), np.cumsum([0, *sizes])
    return [
        graph.op("Slice", x, graph.ints(int(a)), graph.ints(int(b)), where)
        for a, b in pairwise(edges)
    ]


@lowers("aten.split.Tensor")
def split_evenly(graph: GraphBuilder, x: Value, size: int, axis: int = 0) -> list[str]:
    whole = int(x.meta.shape[axis])
    return split(graph, x, [min(size, whole - begin) for begin in range(0, whole, size)], axis)  # type: ignore[return-value]


@lowers("operator.getitem")
def item(graph: GraphBuilder, values: list[Value], index: int) -> Value:
    return values[index]


@lowers("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def view(graph: GraphBuilder, x: Value, shape: list[Size]) -> str:
    return graph.op("Reshape", x, graph.sizes(shape), allowzero=1)


@lowers("aten.expand.default")
def expand(graph: GraphBuilder, x: Value, shape: list[Size], *, implicit: bool = False) -> str:
    return graph.op("Expand", x, graph.sizes([1 if size == -1 else size for size in shape]))


@lowers("aten.permute.default")
def permute(graph: GraphBuilder, x: Value, axes: list[int]) -> str:
    return graph.op("Transpose", x, perm=[axis % x.rank for axis in axes])


@lowers("aten.t.default")
def transpose_matrix(graph: GraphBuilder, x: Value) -> str:
    return graph.op("Transpose", x)


@lowers("aten.transpose.int")
def transpose(graph: GraphBuilder, x: Value, first: int, second: int) -> str:
    axes = list(range(x.rank))
    axes[first], axes[second] = axes[second], axes[first]
    return graph.op("Transpose", x, perm=axes)


@lowers("aten.unsqueeze.default")
def unsqueeze(graph: GraphBuilder, x: Value, axis: int) -> str:
    return graph.op("Unsqueeze", x, graph.ints(axis))


@lowers("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(graph: GraphBuilder, x: Value, axes: int | list[int]) -> str | Value:
    listed = [axes] if isinstance(axes, int) else axes
    ones = [
        axis for axis in listed if x.meta.shape[axis] == 1
    ]  # PyTorch leaves other axes as they are
    return graph.op("Squeeze", x, graph.ints(*ones)) if ones else x


@lowers("aten.flip.default")
def flip(graph: GraphBuilder, x: Value, axes: list[int]) -> str:
    back = graph.ints(*[-1] * len(axes))
    return graph.op("Slice", x, back, graph.ints(*[-_END] * len(axes)), graph.ints(*axes), back)


@lowers("aten.constant_pad_nd.default")
def constant_pad(graph: GraphBuilder, x: Value, pads: list[int], value: float = 0.0) -> str:
    return graph.op("Pad", x, _pads(graph, x, pads), graph.scalar(value, x.dtype))


@lowers("aten.reflection_pad2d.default")
def reflection_pad(graph: GraphBuilder, x: Value, pads: list[int]) -> str:
    return graph.op("Pad", x, _pads(graph, x, pads), mode="reflect")


@lowers("aten.replication_pad2d.default")
def replication_pad(graph: GraphBuilder, x: Value, pads: list[int]) -> str:
    return graph.op("Pad", x, _pads(graph, x, pads), mode="edge")


def _pads(graph: GraphBuilder, x: Value, pads: list[int]) -> str:
    """PyTorch lists (begin, end) from the last axis backwards; ONNX all begins, then all ends, from
    the first.
    """
    pairs = [(0, 0)] * (x.rank - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))[
        ::-1
    ]
    return graph.ints(*(begin for begin, _ in pairs), *(end for _, end in pairs))


@lowers("aten.zeros_like.default")
def zeros_like(graph: GraphBuilder, x: Value, **options: Any) -> str:
    return full_like(graph, x, 0, **options)  # type: ignore[return-value]


@lowers("aten.ones_like.default")
def ones_like(graph: GraphBuilder, x: Value, **options: Any) -> str:
    return full_like(graph, x, 1, **options)  # type: ignore[return-value]


@lowers("aten.full_like.default")
def full_like(
    graph: GraphBuilder, x: Value, value: Number, *, dtype: torch.dtype | None = None, **_: Any
) -> str:
    return graph.op("Expand", graph.scalar(value, dtype or x.dtype), graph.op("Shape", x))


@lowers("aten.full.default")
def full(
    graph: GraphBuilder,
    shape: list[Size],
    value: Number,
    *,
    dtype: torch.dtype | None = None,
    **_: Any,
) -> str:
    return graph.op("Expand", graph.scalar(value, dtype or torch.float32), graph.sizes(shape))


@lowers("aten.scalar_tensor.default")
def scalar_tensor(
    graph: GraphBuilder, value: Number, *, dtype: torch.dtype | None = None, **_: Any
) -> str:
    return graph.scalar(value, dtype or torch.float32)


@lowers("aten.sym_size.int")
def size(graph: GraphBuilder, x: Value, axis: int) -> str:
    axis %= x.rank
    return graph.op("Shape", x, start=axis, end=axis + 1)


@lowers("aten.sym_numel.default")
def numel(graph: GraphBuilder, x: Value) -> str:
    return graph.op("Unsqueeze", graph.op("Size", x), graph.ints(0))


def _arithmetic(kind: str) -> Lowering:
    return lambda graph, a, b: graph.op(kind, graph.sizes([a]), graph.sizes([b]))


# Sizes are positive, so ONNX's division, which rounds towards zero, is the floor division.
for _function, _kind in {"add": "Add", "sub": "Sub", "mul": "Mul", "floordiv": "Div"}.items():
    assert hasattr(operator, _function)
    lowers(f"operator.{_function}")(_arithmetic(_kind))
