"""Rules of resizing, pooling and padding, and of their gradients."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgeadapt.runtime.plan.ir import Shape
from edgeadapt.runtime.plan.rules import (
    Builder,
    Node,
    NoRuleError,
    Value,
    ints,
    number,
    reads,
    require,
)
from edgeadapt.runtime.plan.rules_conv import sizes, window
from edgeadapt.runtime.plan.rules_shape import cut


@reads("Resize")
def resize(
    builder: Builder,
    node: Node,
    x: Value,
    region: Value | None = None,
    scales: Value | None = None,
    lengths: Value | None = None,
) -> Value:
    mode = node.attributes.get("mode", "nearest")
    rounding = {"nearest_mode": "floor"} if mode == "nearest" else {"antialias": 0}
    where = "asymmetric" if mode == "nearest" else "half_pixel"
    require(node, axes=None, coordinate_transformation_mode=where, **rounding)
    if mode not in ("nearest", "linear") or not isinstance(scales, np.ndarray):
        raise NoRuleError(f"of mode {mode!r} to {ints(lengths)}")
    *first, rows, columns = (float(scale) for scale in scales)
    if first != [1.0, 1.0] or rows != columns or rows != int(rows):
        raise NoRuleError(f"by {scales.tolist()}, where it takes one whole number for both sides")
    scale = int(rows)
    shape = (*x.shape[:2], x.shape[2] * scale, x.shape[3] * scale)
    y = builder.result(node.name, shape)
    builder.emit("resize", {"x": builder.plane(x)}, y, node.name, mode=mode, scale=scale)
    return y


@reads("edgeadapt.ResizeGrad")
def resize_gradient(builder: Builder, node: Node, grad_y: Value) -> Value:
    scale, mode = int(node.attributes["scale"]), node.attributes["mode"]
    shape = (*grad_y.shape[:2], grad_y.shape[2] // scale, grad_y.shape[3] // scale)
    grad = {"grad_y": builder.plane(grad_y)}
    y = builder.result(node.name, shape)
    builder.emit("resize_grad", grad, y, node.name, mode=mode, scale=scale)
    return y


@reads("AveragePool")
def average_pool(builder: Builder, node: Node, x: Value) -> Value:
    found = window(node, tuple(node.attributes["kernel_shape"]))
    require(node, ceil_mode=0, dilations=(1, 1))
    if any(found["pads"]):
        require(node, count_include_pad=1)
        if not node.attributes.get("count_include_pad", 0):
            raise NoRuleError("that leaves padding out of the mean")
    shape = (*x.shape[:2], *sizes(x.shape, found))
    del found["dilations"]
    y = builder.result(node.name, shape)
    builder.emit("avg_pool", {"x": builder.plane(x)}, y, node.name, **found)
    return y


@reads("edgeadapt.AveragePoolGrad")
def average_pool_gradient(builder: Builder, node: Node, grad_y: Value, x_shape: Value) -> Value:
    found = window(node, tuple(node.attributes["kernel_shape"]))
    del found["dilations"]
    y = builder.result(node.name, ints(x_shape) or ())
    builder.emit("avg_pool_grad", {"grad_y": builder.plane(grad_y)}, y, node.name, **found)
    return y


@reads("MaxPool")
def max_pool(builder: Builder, node: Node, x: Value) -> Value:
    found = _max_window(node, x.shape)
    shape = (*x.shape[:2], *sizes(x.shape, found))
    y = builder.result(node.name, shape)
    builder.emit("max_pool", {"x": builder.plane(x)}, y, node.name, **found)
    return y


@reads("edgeadapt.MaxPoolGrad")
def max_pool_gradient(builder: Builder, node: Node, grad_y: Value, x: Value) -> Value:
    found = _max_window(node, x.shape)
    inputs = {"grad_y": builder.plane(grad_y), "x": builder.plane(x)}
    y = builder.result(node.name, x.shape)
    builder.emit("max_pool_grad", inputs, y, node.name, **found)
    return y


def _max_window(node: Node, x: Shape) -> dict[str, Any]:
    """The window; sizes that are rounded up become padding at the end."""
    found = window(node, tuple(node.attributes["kernel_shape"]))
    if node.attributes.get("ceil_mode", 0):
        pads = list(found["pads"])
        for axis, count in enumerate(sizes(x, found, ceil=True)):
            reach = (found["kernel"][axis] - 1) * found["dilations"][axis] + 1
            wanted = (count - 1) * found["strides"][axis] + reach
            pads[axis + 2] = max(pads[axis + 2], wanted - x[2 + axis] - pads[axis])
        found["pads"] = tuple(pads)
    return found


@reads("Pad")
def pad(
    builder: Builder,
    node: Node,
    x: Value,
    amounts: Value,
    value: Value | None = None,
    over: Value | None = None,
) -> Value:
    mode, filling = node.attributes.get("mode", "constant"), 0.0
    if value is not None:
        known = number(value)
        if known is None:
            raise NoRuleError("with a value that depends on the image")
        filling = known
    if mode not in ("constant", "reflect", "edge"):
        raise NoRuleError(f"of mode {mode!r}")
    rank, found = len(x.shape), ints(amounts) or ()
    axes = tuple(range(rank)) if over is None else ints(over) or ()
    pads = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        pads[axis % rank] = found[position]
        pads[axis % rank + rank] = found[position + len(axes)]
    if max(pads, default=0) <= 0:
        return _cropped(builder, node, x, pads)
    shape = tuple(n + pads[axis] + pads[axis + rank] for axis, n in enumerate(x.shape))
    if not prod(x.shape):
        raise NoRuleError("of nothing")
    y = builder.result(node.name, shape)
    options = {"pads": tuple(pads), "mode": mode, "value": filling}
    builder.emit("pad", {"x": builder.tensor(x)}, y, node.name, **options)
    return y


def _cropped(builder: Builder, node: Node, x: Value, pads: list[int]) -> Value:
    rank = len(x.shape)
    starts = np.asarray([-begin for begin in pads[:rank]])
    ends = np.asarray([n + end for n, end in zip(x.shape, pads[rank:], strict=True)])
    return cut(builder, node, builder.tensor(x), starts, ends)


@reads("edgeadapt.PadGrad")
def pad_gradient(builder: Builder, node: Node, grad_y: Value) -> Value:
    left, right, top, bottom = node.attributes["pads"]
    pads = (0, 0, top, left, 0, 0, bottom, right)
    shape = tuple(n - pads[axis] - pads[axis + 4] for axis, n in enumerate(grad_y.shape))
    grad = {"grad_y": builder.plane(grad_y)}
    y = builder.result(node.name, shape)
    mode = node.attributes["mode"]
    builder.emit("pad_grad", grad, y, node.name, pads=pads, mode=mode)
    return y
