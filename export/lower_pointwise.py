"""Lowerings of operators that work element by element."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeadapt.export.functions import leaky_relu_grad
from edgeadapt.export.graph import GraphBuilder, Number, Value, onnx_dtype
from edgeadapt.export.lowering import Lowering, lowers

_UNARY = {
    "abs": "Abs",
    "neg": "Neg",
    "sign": "Sign",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "logical_not": "Not",
    "floor": "Floor",
    "bitwise_not": "Not",
    "round": "Round",
}
_BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "maximum": "Max",
    "minimum": "Min",
}
_COMPARISONS = {
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "eq": "Equal",
}


def _unary(kind: str) -> Lowering:
    return lambda graph, x: graph.op(kind, x)


def _binary(kind: str) -> Lowering:
    def lowering(graph: GraphBuilder, x: Number, y: Number, alpha: Number = 1) -> str:
        dtype = _common(x, y)
        if kind == "Div" and not dtype.is_floating_point:
            dtype = torch.float32  # PyTorch divides integers to fractions, ONNX does not
        right = graph.scalar(y, dtype)
        if alpha != 1:
            right = graph.op("Mul", right, graph.scalar(alpha, dtype))
        return graph.op(kind, graph.scalar(x, dtype), right)

    return lowering


def _comparison(kind: str) -> Lowering:
    def lowering(graph: GraphBuilder, x: Number, y: Number) -> str:
        dtype = _common(x, y)
        return graph.op(kind, graph.scalar(x, dtype), graph.scalar(y, dtype))

    return lowering


for _name, _kind in _UNARY.items():
    lowers(f"aten.{_name}.default")(_unary(_kind))
for _name, _kind in _BINARY.items():
    overloads = ("default",) if _name in ("maximum", "minimum") else ("Tensor", "Scalar")
    lowers(*(f"aten.{_name}.{overload}" for overload in overloads))(_binary(_kind))
for _name, _kind in _COMPARISONS.items():
    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_comparison(_kind))


def _common(*values: Number) -> torch.dtype:
    """The dtype PyTorch computes in: that of the tensors; plain numbers take part in it."""
    tensors = [
        value.meta
        for value in values
        if isinstance(value, Value) and isinstance(value.meta, torch.Tensor)
    ]
    if not tensors:
        return torch.float32
    dtype = torch.result_type(tensors[0], tensors[-1])
    return (
        torch.float32
        if not dtype.is_floating_point and any(isinstance(v, float) for v in values)
        else dtype
    )


for _name, _kind in {
    "bitwise_and": "And",
    "bitwise_or": "Or",
    "logical_and": "And",
    "logical_or": "Or",
}.items():
    overload = "Tensor" if _name.startswith("bitwise") else "default"
    lowers(f"aten.{_name}.{overload}")(lambda graph, x, y, kind=_kind: graph.op(kind, x, y))


@lowers("aten.ne.Tensor", "aten.ne.Scalar")
def not_equal(graph: GraphBuilder, x: Number, y: Number) -> str:
    dtype = _common(x, y)
    return graph.op("Not", graph.op("Equal", graph.scalar(x, dtype), graph.scalar(y, dtype)))


@lowers("aten.rsub.Scalar", "aten.rsub.Tensor")
def reverse_subtract(graph: GraphBuilder, x: Value, y: Number, alpha: Number = 1) -> str:
    return _binary("Sub")(graph, y, x, alpha=alpha)  # type: ignore[return-value]


@lowers("aten.pow.Tensor_Scalar")
def power(graph: GraphBuilder, x: Value, exponent: Number) -> str:
    if exponent == 2:
        return graph.op("Mul", x, x)
    return graph.op("Pow", x, graph.scalar(exponent, x.dtype))


@lowers("aten.log1p.default")
def log_of_one_plus(graph: GraphBuilder, x: Value) -> str:
    return graph.op("Log", graph.op("Add", x, graph.scalar(1.0, x.dtype)))


@lowers("aten.expm1.default")
def exp_minus_one(graph: GraphBuilder, x: Value) -> str:
    return graph.op("Sub", graph.op("Exp", x), graph.scalar(1.0, x.dtype))


@lowers("aten.elu.default")
def elu(
    graph: GraphBuilder, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> str:
    inner = graph.op("Mul", x, graph.scalar(input_scale, x.dtype))
    below = graph.op(
        "Mul", exp_minus_one(graph, Value(inner, x.meta)), graph.scalar(alpha, x.dtype)
    )
    positive = graph.op("Greater", x, graph.scalar(0.0, x.dtype))
    return graph.op("Mul", graph.op("Where", positive, x, below), graph.scalar(scale, x.dtype))


@lowers("aten.softplus.default")
def softplus(graph: GraphBuilder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> str:
    scaled = graph.op("Mul", x, graph.scalar(beta, x.dtype))
    bent = graph.op("Div", graph.op("Softplus", scaled), graph.scalar(beta, x.dtype))
    return graph.op("Where", graph.op("Greater", scaled, graph.scalar(threshold, x.dtype)), x, bent)


@lowers("aten.hardtanh.default")
def hardtanh(graph: GraphBuilder, x: Value, low: float = -1.0, high: float = 1.0) -> str:
    return graph.op("Clip", x, graph.scalar(low, x.dtype), graph.scalar(high, x.dtype))


@lowers("aten.rsqrt.default")
def reciprocal_square_root(graph: GraphBuilder, x: Value) -> str:
    return graph.op("Reciprocal", graph.op("Sqrt", x))


@lowers("aten.silu.default")
def silu(graph: GraphBuilder, x: Value) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


@lowers("aten.gelu.default")
def gelu(graph: GraphBuilder, x: Value, *, approximate: str = "none") -> str:
    if approximate == "tanh":
        cube = graph.op("Mul", graph.op("Mul", x, x), x)
        bent = graph.op("Add", x, graph.op("Mul", cube, graph.scalar(0.044715, x.dtype)))
        scaled = graph.op("Mul", bent, graph.scalar(math.sqrt(2 / math.pi), x.dtype))
        bell = graph.op("Tanh", scaled)
    else:
        bell = graph.op("Erf", graph.op("Mul", x, graph.scalar(1 / math.sqrt(2), x.dtype)))
    half = graph.op("Mul", x, graph.scalar(0.5, x.dtype))
    return graph.op("Mul", half, graph.op("Add", bell, graph.scalar(1.0, x.dtype)))


@lowers("aten.leaky_relu.default")
def leaky_relu(graph: GraphBuilder, x: Value, slope: float = 0.01) -> str:
    return graph.op("LeakyRelu", x, alpha=float(slope))


@lowers("aten.leaky_relu_backward.default")
def leaky_relu_gradient(
    graph: GraphBuilder, grad_y: Value, x: Value, slope: float, x_is_result: bool
) -> str:
    # Input and result have the same sign, so it does not matter which of them x is.
    return graph.call(leaky_relu_grad(), grad_y, x, alpha=float(slope))


@lowers("aten.clamp.default")
def clamp(
    graph: GraphBuilder, x: Value, low: Number | None = None, high: Number | None = None
) -> str:
    bounds = ["" if bound is None else graph.scalar(bound, x.dtype) for bound in (low, high)]
    return graph.op("Clip", x, *bounds)


@lowers("aten.where.self")
def where(graph: GraphBuilder, condition: Value, x: Number, y: Number) -> str:
    dtype = _common(x, y)
    return graph.op("Where", condition, graph.scalar(x, dtype), graph.scalar(y, dtype))


@lowers("aten._to_copy.default")
def to_copy(
    graph: GraphBuilder, x: Value, *, dtype: torch.dtype | None = None, **_: Any
) -> str | Value:
    return x if dtype is None or dtype == x.dtype else graph.op("Cast", x, to=onnx_dtype(dtype))
