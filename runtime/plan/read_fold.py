"""What can be computed while reading: everything that follows from sizes and constants alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from edgeadapt.runtime.plan.ir import Shape
from edgeadapt.runtime.plan.read_nodes import Node
from edgeadapt.runtime.plan.rules import ints
from edgeadapt.runtime.plan.shapes import broadcast, resolve, sliced

Array = npt.NDArray[Any]
_MOST = 1 << 16  # elements: above this the plan computes, an array of an image's size is not kept


def _divide(a: Array, b: Array) -> Array:
    """ONNX's: of integers rounded towards zero, which for the sizes there are is down."""
    return a // b if a.dtype.kind in "iu" else a / b


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "Neg": np.negative, "Sign": np.sign, "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal, "Exp": np.exp, "Log": np.log, "Sin": np.sin, "Cos": np.cos,
    "Tanh": np.tanh, "Floor": np.floor, "Round": np.round, "Not": np.logical_not,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Relu": lambda x: np.maximum(x, 0),
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": np.power,
    "Max": lambda *x: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Min": lambda *x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal, "Equal": np.equal, "And": np.logical_and,
    "Or": np.logical_or, "Where": np.where,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min,
    "ReduceProd": np.prod,
}  # fmt: skip


def fold(node: Node, inputs: list[Array | None]) -> Array | None:
    """The node's result, or None if it is left to the rules."""
    known = [value for value in inputs if value is not None]
    if node.domain:
        return None
    if node.kind == "Constant":
        return _constant(node)
    if node.kind == "Cast":
        return _spread(lambda x: x.astype(_dtype(node.attributes["to"])), known)
    if node.kind in _ELEMENTWISE:
        return _spread(_ELEMENTWISE[node.kind], known)
    if node.kind == "Expand":
        return np.broadcast_to(known[0], broadcast(known[0].shape, ints(known[1]) or ()))
    if node.kind in _REDUCTIONS and max(value.size for value in known) <= _MOST:
        return _reduced(node, *inputs)
    move = _MOVES.get(node.kind)
    if move is None or sum(value.size for value in known) > _MOST:
        return None
    return np.asarray(move(node, *inputs))


def _spread(function: Callable[..., Any], inputs: list[Array]) -> Array | None:
    """Element by element; what is repeated by strides is computed once and repeated again."""
    shape = broadcast(*(value.shape for value in inputs))
    once = [
        value[tuple(slice(0, 1 if s == 0 else None) for s in value.strides)] for value in inputs
    ]
    if np.prod(broadcast(*(value.shape for value in once)), dtype=np.int64) > _MOST:
        return None
    with np.errstate(all="ignore"):
        result = np.asarray(function(*once))
    if inputs[0].dtype == np.float32 and result.dtype == np.float64:
        result = result.astype(np.float32)
    return np.broadcast_to(result, shape)


def _constant(node: Node) -> Array:
    types = {"value_float": np.float32, "value_int": np.int64, "value": None}
    for name, value in node.attributes.items():
        return np.asarray(value, types[name.removesuffix("s")])
    raise ValueError("a constant without a value")


def _dtype(to: int) -> Any:
    return helper.tensor_dtype_to_np_dtype(to)


def _reduced(node: Node, x: Any, over: Array | None = None) -> Array:
    axes = ints(over)
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return np.asarray(x)
    keep = bool(node.attributes.get("keepdims", 1))
    return np.asarray(_REDUCTIONS[node.kind](x, axis=axes or None, keepdims=keep), x.dtype)


def _sliced(
    node: Node, x: Array, starts: Array, ends: Array, over: Array | None = None, by: Any = None
) -> Array:
    begins, stops = ints(starts) or (), ints(ends) or ()
    axes, steps = ints(over) or tuple(range(len(begins))), ints(by) or (1,) * len(begins)
    for axis, begin, stop, step in zip(axes, begins, stops, steps, strict=True):
        first, count = sliced(x.shape[axis], begin, stop, step)
        x = x.take(first + step * np.arange(count), axis)
    return x


def _padded(
    node: Node, x: Array, amounts: Array, value: Any = None, over: Array | None = None
) -> Array | None:
    found, mode = ints(amounts) or (), node.attributes.get("mode", "constant")
    axes = ints(over) or tuple(range(x.ndim))
    if min(found, default=0) < 0 or mode != "constant":
        return None
    around = [(0, 0)] * x.ndim
    for position, axis in enumerate(axes):
        around[axis] = (found[position], found[position + len(axes)])
    return np.pad(x, around, constant_values=0 if value is None else value.item())


def _squeezed(node: Node, x: Array, axes: Array | None = None) -> Array:
    return x.squeeze(ints(axes))


def _reshape(node: Node, x: Array, wanted: Array) -> Array:
    shape: Shape = resolve(x.shape, ints(wanted) or (), not node.attributes.get("allowzero", 0))
    return x.reshape(shape)


_MOVES: dict[str, Callable[..., Any]] = {
    "Concat": lambda node, *parts: np.concatenate(parts, node.attributes["axis"]),
    "Gather": lambda node, x, i: np.take(x, i, node.attributes.get("axis", 0)),
    "Identity": lambda node, x: x,
    "Pad": _padded,
    "Reshape": _reshape,
    "Slice": _sliced,
    "Squeeze": _squeezed,
    "Tile": lambda node, x, counts: np.tile(x, ints(counts) or ()),
    "Transpose": lambda node, x: np.transpose(x, node.attributes.get("perm")),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, ints(axes) or ()),
}
