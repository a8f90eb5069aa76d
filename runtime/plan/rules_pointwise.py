"""Rules of operators that work element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from edgeadapt.runtime.plan.ir import Dtype, Tensor
from edgeadapt.runtime.plan.kinds import MAX_INPUTS
from edgeadapt.runtime.plan.rules import Builder, Node, NoRuleError, Value, number, reads
from edgeadapt.runtime.plan.shapes import broadcast

_FUNCTIONS = {
    "Abs": "abs", "Neg": "neg", "Sign": "sign", "Sqrt": "sqrt", "Reciprocal": "reciprocal",
    "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "Softplus": "softplus", "Erf": "erf", "Floor": "floor", "Round": "round",
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow",
}  # fmt: skip
_TRUTHS = {
    "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "Equal": "eq",
    "And": "and", "Or": "or", "Not": "not",
}  # fmt: skip
_CHAINS = {"Max": "max", "Min": "min", "Sum": "add"}
_FLOAT = onnx.TensorProto.FLOAT
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
Step = tuple[str, tuple[tuple[str, Any], ...]]


def _take(position: int) -> tuple[str, Any]:
    return ("in", position)


def pointwise(
    builder: Builder, name: str, steps: Sequence[Step], *inputs: Value, dtype: Dtype = "f32"
) -> Tensor:
    """One operation over ``inputs``, broadcast; in ``steps``, ("in", i) stands for input i.

    An input that is one number becomes part of the expression, an input given twice is one.
    """
    shape = broadcast(*(tuple(value.shape) for value in inputs))
    places: dict[str, int] = {}
    arguments = []
    for value in inputs:
        constant = number(value)
        if constant is not None:
            arguments.append(("c", constant))
        else:
            x = builder.expand(value, shape)
            arguments.append(("x", places.setdefault(x.name, len(places))))
    if len(places) > MAX_INPUTS:
        raise NoRuleError(f"with {len(places)} inputs, where {MAX_INPUTS} is the most")
    expression = tuple(
        (function, tuple(arguments[a[1]] if a[0] == "in" else a for a in taken))
        for function, taken in steps
    )
    y = builder.result(name, shape, dtype)
    tensors = {f"x{place}": builder.tensors[x] for x, place in places.items()}
    builder.emit("pointwise", tensors, y, name, expression=expression)
    return y


def _is_bool(value: Value) -> bool:
    return value.dtype == ("bool" if isinstance(value, Tensor) else np.bool_)


@reads(*_FUNCTIONS)
def function(builder: Builder, node: Node, *inputs: Value) -> Value:
    step = (_FUNCTIONS[node.kind], tuple(_take(i) for i in range(len(inputs))))
    return pointwise(builder, node.name, [step], *inputs)


@reads(*_TRUTHS)
def truth(builder: Builder, node: Node, *inputs: Value) -> Value:
    step = (_TRUTHS[node.kind], tuple(_take(i) for i in range(len(inputs))))
    return pointwise(builder, node.name, [step], *inputs, dtype="bool")


@reads(*_CHAINS)
def chain(builder: Builder, node: Node, *inputs: Value) -> Value:
    name = _CHAINS[node.kind]
    if len(inputs) == 1:
        return inputs[0]
    steps: list[Step] = [(name, (_take(0), _take(1)))]
    for position in range(2, len(inputs)):
        steps.append((name, (("t", position - 2), _take(position))))
    return pointwise(builder, node.name, steps, *inputs)


@reads("Clip")
def clip(
    builder: Builder, node: Node, x: Value, low: Value | None = None, high: Value | None = None
) -> Value:
    inputs, steps = [x], list[Step]()
    for name, bound in (("max", low), ("min", high)):
        if bound is not None:
            steps.append((name, (("t", 0) if steps else _take(0), _take(len(inputs)))))
            inputs.append(bound)
    return pointwise(builder, node.name, steps, *inputs) if steps else x


@reads("Relu")
def relu(builder: Builder, node: Node, x: Value) -> Value:
    return pointwise(builder, node.name, [("leaky", (_take(0), ("c", 0.0)))], x)


@reads("LeakyRelu")
def leaky_relu(builder: Builder, node: Node, x: Value) -> Value:
    slope = float(node.attributes.get("alpha", 0.01))
    return pointwise(builder, node.name, [("leaky", (_take(0), ("c", slope)))], x)


@reads("edgeadapt.LeakyReluGrad")
def leaky_relu_gradient(builder: Builder, node: Node, grad_y: Value, x: Value) -> Value:
    slope = float(node.attributes["alpha"])
    step = ("leaky_grad", (_take(0), _take(1), ("c", slope)))
    return pointwise(builder, node.name, [step], grad_y, x)


@reads("Where")
def where(builder: Builder, node: Node, condition: Value, then: Value, other: Value) -> Value:
    step = ("where", (_take(0), _take(1), _take(2)))
    return pointwise(builder, node.name, [step], condition, then, other)


@reads("Cast")
def cast(builder: Builder, node: Node, x: Tensor) -> Value:
    to = node.attributes["to"]
    if to == onnx.TensorProto.BOOL:
        step: Step = ("ne", (_take(0), ("c", 0.0)))
        return x if _is_bool(x) else pointwise(builder, node.name, [step], x, dtype="bool")
    if _is_bool(x) and to in (_FLOAT, *_INTEGERS):  # integers are counts: float32 holds them
        return pointwise(builder, node.name, [("copy", (_take(0),))], x)
    if to != _FLOAT:
        raise NoRuleError(f"to ONNX type {to}")
    return x
