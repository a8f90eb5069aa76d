"""Rules of operators that move elements: wherever strides can say it, the result is a view."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise
from math import prod

import numpy as np

from edgeadapt.runtime.plan.ir import Shape, Tensor, contiguous
from edgeadapt.runtime.plan.rules import Builder, Node, NoRuleError, Rule, Value, ints, reads
from edgeadapt.runtime.plan.shapes import broadcast, reshaped, resolve, sliced


def moves(operator: str) -> Callable[[Rule], Rule]:
    """Register a rule whose first input is to be a tensor, also where it is known."""

    def register(rule: Rule) -> Rule:
        reads(operator)(
            lambda builder, node, x, *more: rule(builder, node, builder.tensor(x), *more)
        )
        return rule

    return register


@reads("Shape")
def shape_of(builder: Builder, node: Node, x: Value) -> Value:
    part = slice(node.attributes.get("start", 0), node.attributes.get("end"))
    return np.asarray(x.shape[part], np.int64)


@reads("Size")
def size_of(builder: Builder, node: Node, x: Value) -> Value:
    return np.asarray(prod(x.shape), np.int64)


@reads("Identity")
def identity(builder: Builder, node: Node, x: Value) -> Value:
    return x


@moves("Reshape")
def reshape(builder: Builder, node: Node, x: Tensor, shape: Value) -> Value:
    zero_copies = not node.attributes.get("allowzero", 0)
    return _reshaped(builder, x, resolve(x.shape, ints(shape) or (), zero_copies), node.name)


def _reshaped(builder: Builder, x: Tensor, shape: Shape, name: str) -> Tensor:
    strides = reshaped(x.shape, x.strides, shape)
    return builder.copy(x, name, shape) if strides is None else builder.view(x, shape, strides)


@moves("Flatten")
def flatten(builder: Builder, node: Node, x: Tensor) -> Value:
    axis = node.attributes.get("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    shape = (prod(x.shape[:axis]), prod(x.shape[axis:]))
    return _reshaped(builder, x, shape, node.name)


@moves("Unsqueeze")
def unsqueeze(builder: Builder, node: Node, x: Tensor, axes: Value) -> Value:
    new = ints(axes) or ()
    rank = len(x.shape) + len(new)
    ones = {axis % rank for axis in new}
    old = iter(zip(x.shape, x.strides, strict=True))
    placed = [(1, 0) if axis in ones else next(old) for axis in range(rank)]
    return _view_of(builder, x, placed)


@moves("Squeeze")
def squeeze(builder: Builder, node: Node, x: Tensor, axes: Value | None = None) -> Value:
    rank, over = len(x.shape), ints(axes)
    gone = {a for a in range(rank) if x.shape[a] == 1}
    gone = gone if over is None else {axis % rank for axis in over}
    axis_and_stride = enumerate(zip(x.shape, x.strides, strict=True))
    return _view_of(builder, x, [pair for axis, pair in axis_and_stride if axis not in gone])


@moves("Transpose")
def transpose(builder: Builder, node: Node, x: Tensor) -> Value:
    order = node.attributes.get("perm", tuple(range(len(x.shape)))[::-1])
    return _view_of(builder, x, [(x.shape[axis], x.strides[axis]) for axis in order])


def _view_of(builder: Builder, x: Tensor, axes: list[tuple[int, int]], skip: int = 0) -> Tensor:
    """A view with (length, stride) for each axis."""
    shape = tuple(length for length, _ in axes)
    dense = contiguous(shape)
    # The stride of an axis of length 1 says nothing: one spelling, so that equal views are one.
    strides = tuple(dense[i] if length == 1 else stride for i, (length, stride) in enumerate(axes))
    return builder.view(x, shape, strides, skip)


@moves("Expand")
def expand(builder: Builder, node: Node, x: Tensor, shape: Value) -> Value:
    return builder.expand(x, broadcast(x.shape, ints(shape) or ()))


@moves("Tile")
def tile(builder: Builder, node: Node, x: Tensor, repeats: Value) -> Value:
    counts = ints(repeats) or ()
    shape = tuple(n * count for n, count in zip(x.shape, counts, strict=True))
    axes = zip(x.shape, x.strides, counts, strict=True)
    # Each axis as (repeat, element); where one of them is 1 the other says it all.
    split = [
        [(n, stride)] if count == 1 else [(count, 0)] if n == 1 else [(count, 0), (n, stride)]
        for n, stride, count in axes
    ]
    return _reshaped(builder, _view_of(builder, x, list(chain(*split))), shape, node.name)


@moves("Slice")
def cut(
    builder: Builder,
    node: Node,
    x: Tensor,
    starts: Value,
    ends: Value,
    over: Value | None = None,
    strides: Value | None = None,
) -> Value:
    begins, stops = ints(starts) or (), ints(ends) or ()
    axes, steps = ints(over) or tuple(range(len(begins))), ints(strides) or (1,) * len(begins)
    result, skip = list(zip(x.shape, x.strides, strict=True)), 0
    for axis, begin, stop, step in zip(axes, begins, stops, steps, strict=True):
        length, stride = result[axis]
        first, count = sliced(length, begin, stop, step)
        skip += first * stride
        result[axis] = (count, stride * step)
    return _view_of(builder, x, result, skip)


@moves("Gather")
def gather(builder: Builder, node: Node, x: Tensor, indices: Value) -> Value:
    axis = node.attributes.get("axis", 0) % len(x.shape)
    length, stride = x.shape[axis], x.strides[axis]
    wanted = [index % length for index in ints(indices) or ()]
    steps = {after - before for before, after in pairwise(wanted)}
    if len(indices.shape) > 1 or len(steps) > 1 or not wanted:
        raise NoRuleError("of indices without a common distance")
    axes = list(zip(x.shape, x.strides, strict=True))
    scalar = not indices.shape
    chosen = [] if scalar else [(len(wanted), stride * (steps.pop() if steps else 1))]
    return _view_of(builder, x, axes[:axis] + chosen + axes[axis + 1 :], wanted[0] * stride)


@reads("Concat")
def concat(builder: Builder, node: Node, *inputs: Value) -> Value:
    axis = node.attributes["axis"] % len(inputs[0].shape)
    parts = [builder.tensor(value) for value in inputs if value.shape[axis]]
    if len(parts) < 2:
        return parts[0] if parts else inputs[0]
    lengths = sum(part.shape[axis] for part in parts)
    shape = (*parts[0].shape[:axis], lengths, *parts[0].shape[axis + 1 :])
    y = builder.result(node.name, shape, parts[0].dtype)
    inputs_by_role = {f"x{i}": part for i, part in enumerate(parts)}
    builder.emit("concat", inputs_by_role, y, node.name, axis=axis)
    return y
