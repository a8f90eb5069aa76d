"""From a traced PyTorch graph to ONNX nodes: one lowering for each PyTorch operator, looked up by
its name.

The lowerings are in the files ``lower_*.py``. An operator without one is an `ExportError`
that names it and the line of the model it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from onnx import numpy_helper
from torch import fx

from edgeadapt.errors import ExportError
from edgeadapt.export.graph import GraphBuilder, Value
from edgeadapt.export.trace import Trace

Lowering = Callable[..., str | list[str] | Value]
LOWERINGS: dict[str, Lowering] = {}
_HINT = (
    "write the network with supported operators (docs/operators.md), or register a lowering with "
    "edgeadapt.export.lowering.lowers."
)
_L = TypeVar("_L", bound=Lowering)


def lowers(*operators: str) -> Callable[[_L], _L]:
    """Register a function as the lowering of PyTorch operators, such as "aten.cat.default".

    It is called with the builder and the operator's own arguments, tensors and symbolic sizes as
    `Value`, and returns the name of its result (a list for several, a `Value` to hand an input
    through)."""

    def register(function: _L) -> _L:
        for operator in operators:
            assert operator not in LOWERINGS, operator
            LOWERINGS[operator] = function
        return function

    return register


def lowerings() -> Mapping[str, Lowering]:
    """Every lowering there is, by the operator's name."""
    from edgeadapt.export import (  # noqa: F401  they register themselves
        lower_conv,
        lower_pad,
        lower_pointwise,
        lower_reduce,
        lower_shape,
    )

    return LOWERINGS


def lower(trace: Trace) -> tuple[GraphBuilder, dict[str, str]]:
    """Lower a whole trace. Returns the builder and, for each output of the trace, the name of its
    value.

    Raises:
        ExportError: listing every operator that has no lowering.
    """
    _refuse_unknown(trace, lowerings())
    graph = GraphBuilder()
    values: dict[fx.Node, Any] = {
        node: Value(name, node.meta["val"]) for node, name in trace.inputs.items()
    }
    for node in trace.graph.nodes:
        if node.op == "get_attr":
            values[node] = Value(node.target, trace.constants[node.target])
        elif node.op == "call_function":
            graph.label(node.name)
            values[node] = _lower_node(graph, node, values)
    for name, tensor in trace.constants.items():
        graph.constants[name] = numpy_helper.from_array(tensor.detach().cpu().numpy(), name)
    return graph, {key: values[node].name for key, node in trace.outputs.items()}


def _lower_node(graph: GraphBuilder, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    name = operator_name(node)
    arguments = fx.node.map_arg(node.args, lambda other: values[other])
    options = fx.node.map_arg(node.kwargs, lambda other: values[other])
    try:
        result = LOWERINGS[name](graph, *arguments, **options)
    except ExportError as error:
        raise ExportError(f"{name} {_source(node)}: {error.message}", error.hint) from error
    except Exception as error:  # arguments the lowering was not written for
        shown = ", ".join(str(argument) for argument in [*node.args, *node.kwargs])
        raise ExportError(
            f"{name} {_source(node)} has no ONNX lowering for the arguments ({shown}).",
            _HINT,
        ) from error
    if isinstance(result, list):
        return [Value(name, meta) for name, meta in zip(result, node.meta["val"], strict=True)]
    return Value(result.name if isinstance(result, Value) else result, node.meta["val"])


def _refuse_unknown(trace: Trace, known: Mapping[str, Lowering]) -> None:
    unknown: dict[str, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op == "call_function" and operator_name(node) not in known:
            unknown.setdefault(operator_name(node), node)
    if unknown:
        places = "; ".join(f"{name} {_source(node)}" for name, node in unknown.items())
        raise ExportError(
            f"no ONNX lowering for {places}.",
            _HINT,
        )


def operator_name(node: fx.Node) -> str:
    """What the lowering of ``node`` is registered under, such as "aten.cat.default"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return (
        f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}".removeprefix(
            "_"
        )
    )


def _source(node: fx.Node) -> str:
    """The line of the model that ``node`` comes from."""
    line = node.meta.get("stack_trace")
    return f"(at {line})" if line else "(in the backward pass)"
