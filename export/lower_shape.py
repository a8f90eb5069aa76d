"""Lowerings of operators that move or create elements, and of arithmetic on symbolic sizes."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

from edgeadapt.export.graph import GraphBuilder, Number, Size, Value, onnx_dtype
from edgeadapt.export.lowering import Lowering, lowers

_END = np.iinfo(np.int64).max


@lowers(
    "aten.detach.default",
    "aten.alias.default",
    "aten.clone.default",
    "aten.lift_fresh_copy.default",
)
def same(graph: GraphBuilder, x: Value, **_: Any) -> Value:
    return x


@lowers("aten.copy.default")
def copy(graph: GraphBuilder, x: Value, source: Value, non_blocking: bool = False) -> str:
    return graph.op("Expand", source, graph.op("Shape", x))


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
    axis %= grad_y.rank
    where = graph.ints(axis)
    spread: str | Value = grad_y
    if step != 1:  # step - 1 zeros after each element, but not after the last
        apart = graph.op("Unsqueeze", grad_y, graph.ints(axis + 1))
        filled = graph.op("Pad", apart, graph.ints(0, step - 1), "", graph.ints(axis + 1))
        tail = graph.op("Shape", grad_y, start=axis + 1) if axis + 1 < grad_y.rank else None
        shape = [graph.ints(*[0] * axis, -1)] + ([tail] if tail else [])
        merged = graph.op("Reshape", filled, graph.op("Concat", *shape, axis=0))
        spread = graph.op("Slice", merged, graph.ints(0), graph.ints(1 - step), where)
    whole, before = graph.sizes([sizes[axis]]), graph.sizes([start])
    if isinstance(start, int) and start < 0:  # from the end, but not before the beginning
        before = graph.op("Max", graph.op("Add", whole, before), graph.ints(0))
    have = graph.op("Shape", spread, start=axis, end=axis + 1)
    after = graph.op("Sub", graph.op("Sub", whole, have), before)
    return graph.op("Pad", spread, graph.op("Concat", before, after, axis=0), "", where)


@lowers("aten.select.int")
def select(graph: GraphBuilder, x: Value, axis: int, index: int) -> str:
    return graph.op("Gather", x, graph.constant(index, np.int64), axis=axis)


@lowers("aten.select_backward.default")
def select_gradient(
    graph: GraphBuilder, grad_y: Value, sizes: list[Size], axis: int, index: int
) -> str:
    axis %= len(sizes)
    whole, where = graph.sizes([sizes[axis]]), graph.ints(axis)
    if index >= 0:
        pads = graph.ints(index), graph.op("Sub", whole, graph.ints(index + 1))
    else:  # from the end
        pads = graph.op("Add", whole, graph.ints(index)), graph.ints(-1 - index)
    apart = graph.op("Unsqueeze", grad_y, where)
    return graph.op("Pad", apart, graph.op("Concat", *pads, axis=0), "", where)


@lowers("aten.split_with_sizes.default")
def split(graph: GraphBuilder, x: Value, sizes: list[Size], axis: int = 0) -> list[str]:
    begin: Size = 0
    parts = []
    for size in sizes:
        end = _sum(graph, begin, size)
        bounds = graph.sizes([begin]), graph.sizes([end])
        parts.append(graph.op("Slice", x, *bounds, graph.ints(axis)))
        begin = end
    return parts


def _sum(graph: GraphBuilder, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return Value(graph.op("Add", graph.sizes([a]), graph.sizes([b])), None)


@lowers("operator.getitem")
def item(graph: GraphBuilder, values: list[Value], index: int) -> Value:
    return values[index]


@lowers("aten.view.default")
def view(graph: GraphBuilder, x: Value, shape: list[Size]) -> str:
    return graph.op("Reshape", x, graph.sizes(shape), allowzero=1)


@lowers("aten.expand.default")
def expand(graph: GraphBuilder, x: Value, shape: list[Size], *, implicit: bool = False) -> str:
    return graph.op("Expand", x, graph.sizes([1 if size == -1 else size for size in shape]))


@lowers("aten.permute.default")
def permute(graph: GraphBuilder, x: Value, axes: list[int]) -> str:
    return graph.op("Transpose", x, perm=[axis % x.rank for axis in axes])


@lowers("aten.unsqueeze.default")
def unsqueeze(graph: GraphBuilder, x: Value, axis: int) -> str:
    return graph.op("Unsqueeze", x, graph.ints(axis))


@lowers("aten.squeeze.dims")
def squeeze(graph: GraphBuilder, x: Value, axes: list[int]) -> str | Value:
    # PyTorch leaves other axes as they are.
    ones = [axis for axis in axes if x.meta.shape[axis] == 1]
    return graph.op("Squeeze", x, graph.ints(*ones)) if ones else x


@lowers("aten.repeat.default")
def repeat(graph: GraphBuilder, x: Value, counts: list[Size]) -> str:
    missing = len(counts) - x.rank
    whole = graph.op("Unsqueeze", x, graph.ints(*range(missing))) if missing else x
    return graph.op("Tile", whole, graph.sizes(counts))


@lowers("aten.roll.default")
def roll(graph: GraphBuilder, x: Value, shifts: list[int], axes: list[int]) -> str:
    value: str | Value = x
    for shift, axis in zip(shifts, axes, strict=True):
        where = graph.ints(axis)
        tail = graph.op("Slice", value, graph.ints(-shift), graph.ints(_END), where)
        head = graph.op("Slice", value, graph.ints(0), graph.ints(-shift), where)
        value = graph.op("Concat", tail, head, axis=axis)
    return value if isinstance(value, str) else value.name


@lowers("aten.flip.default")
def flip(graph: GraphBuilder, x: Value, axes: list[int]) -> str:
    back = graph.ints(*[-1] * len(axes))
    return graph.op("Slice", x, back, graph.ints(*[-_END] * len(axes)), graph.ints(*axes), back)


@lowers("aten.zeros_like.default")
def zeros_like(graph: GraphBuilder, x: Value, **options: Any) -> str:
    return full_like(graph, x, 0, **options)


@lowers("aten.ones_like.default")
def ones_like(graph: GraphBuilder, x: Value, **options: Any) -> str:
    return full_like(graph, x, 1, **options)


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
    def lowering(graph: GraphBuilder, a: Number, b: Number) -> str:
        if kind != "TrueDiv" and not _is_float(a) and not _is_float(b):
            return graph.op(kind, _integer(graph, a), _integer(graph, b))
        return graph.op("Div" if kind == "TrueDiv" else kind, _float(graph, a), _float(graph, b))

    return lowering


# Sizes are positive, so ONNX's division, which rounds towards zero, is the floor division.
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "floordiv": "Div", "truediv": "TrueDiv"}
for _function, _kind in _ARITHMETIC.items():
    assert hasattr(operator, _function)
    lowers(f"operator.{_function}")(_arithmetic(_kind))


@lowers("operator.neg")
def negative(graph: GraphBuilder, a: Value) -> str:
    return graph.op("Neg", a)


@lowers("torch.sym_float")
def float_of_size(graph: GraphBuilder, a: Value) -> str:
    return _float(graph, a)


def _is_float(a: Number) -> bool:
    return isinstance(a.meta if isinstance(a, Value) else a, float | torch.SymFloat)


def _integer(graph: GraphBuilder, a: Number) -> str:
    return a.name if isinstance(a, Value) else graph.ints(int(a))


def _float(graph: GraphBuilder, a: Number) -> str:
    """A size or number as a float32 vector of one element."""
    if not isinstance(a, Value):
        return graph.constant([a], np.float32)
    return a.name if _is_float(a) else graph.op("Cast", a, to=onnx_dtype(torch.float32))
