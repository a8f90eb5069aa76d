"""The first stage: a graph of a bundle, for one image size, as a program.

Sizes are known here, so everything that only depends on them is computed, and no integers are left
in the program. Nothing is made faster: that is for the stages which follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, one_line
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.plan.ir import Program, Tensor
from edgeadapt.runtime.plan.read_builder import Builder, NoRuleError, Value
from edgeadapt.runtime.plan.read_fold import fold
from edgeadapt.runtime.plan.read_nodes import Function, Graph, Node, Reference, parse
from edgeadapt.runtime.plan.rules import operator, rules

_HINT = "use --backend onnxruntime."


def read(bundle: Bundle, graph_name: str, height: int, width: int) -> Program:
    """The program of the graph in the file ``graph_name`` for an image of ``height`` x ``width``.

    Both must be multiples of the bundle's. Its outputs have the names of the graph's: "restored"
    and gradients lie in the session's arrays, "loss" and "loss_terms" in the arena.

    Raises:
        BackendError: naming an operator that the native engine has no rule for.
    """
    graph = parse(bundle, graph_name)
    image = Tensor("image", (1, 3, height, width), storage="image")
    weights, gradients = _parameters(bundle)
    places = {"restored": replace(image, name="restored", storage="restored"), **gradients}
    builder = Builder(places)
    inputs = {"image": image, **weights}
    values: dict[str, Value] = {**inputs, **graph.constants}
    for tensor in inputs.values():
        builder.add(tensor)
    reader = _Reader(graph, builder)
    reader.run(graph.nodes, values)
    for name in graph.outputs:
        _give(builder, name, values[name])
    return builder.program(graph.outputs)


def _parameters(bundle: Bundle) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every parameter by name; its gradient by the name of the graph's output."""
    weights, offsets = {}, bundle.offsets()
    for row in bundle.manifest.parameters:
        offset = offsets[row.name].start
        weights[row.name] = Tensor(row.name, row.shape, storage="weights", offset=offset)
    named = {GRADIENT_PREFIX + name: tensor for name, tensor in weights.items()}
    gradients = {
        name: replace(tensor, name=name, storage="gradients") for name, tensor in named.items()
    }
    return weights, gradients


def _give(builder: Builder, name: str, value: Value) -> None:
    """Copy an output that is a view, an array, or has another name."""
    if not isinstance(value, Tensor) or value.name != name:
        builder.copy(builder.tensor(value), name)


class _Reader:
    """Runs through nodes in their order, each by its rule."""

    def __init__(self, graph: Graph, builder: Builder) -> None:
        self._graph, self._builder, self._rules = graph, builder, rules()

    def run(self, nodes: tuple[Node, ...], values: dict[str, Value]) -> None:
        """Add to ``values`` what the nodes make of those already there."""
        for node in nodes:
            inputs = [values[name] if name else None for name in node.inputs]
            rule = self._rules.get(operator(node))
            function = self._graph.functions.get((node.domain, node.kind))
            if rule is None and function is not None:
                self._inline(function, node, values)
            else:
                values[node.name] = self._result(node, inputs)

    def _result(self, node: Node, inputs: list[Value | None]) -> Value:
        reason = ""
        try:
            if not any(isinstance(value, Tensor) for value in inputs):
                known = fold(node, inputs)  # type: ignore[arg-type]
                if known is not None:
                    return known
            rule = self._rules.get(operator(node))
            if rule is not None and not any(node.outputs[1:]):
                return rule(self._builder, node, *inputs)
        except NoRuleError as error:
            reason = f" {error}"
        except Exception as error:  # noqa: BLE001  arguments the rule was not written for
            reason = f" with these arguments ({one_line(error)})"
        raise BackendError(
            f"{self._graph.file}: the native engine has no rule for {operator(node)}{reason} "
            f"(at {node.name!r}).",
            _HINT,
        )

    def _inline(self, function: Function, call: Node, values: dict[str, Value]) -> None:
        """Read the body of a function, its values named after the call's."""
        attributes = {**function.defaults, **call.attributes}
        names = dict.fromkeys((*function.inputs, *function.outputs), "")  # "": left out
        names |= zip(function.inputs, call.inputs, strict=False)
        names |= zip(function.outputs, call.outputs, strict=False)

        def renamed(inside: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name and names.get(name, f"{call.name}/{name}") for name in inside)

        self.run(
            tuple(
                Node(
                    node.kind,
                    node.domain,
                    renamed(node.inputs),
                    renamed(node.outputs),
                    _resolved(node.attributes, attributes),
                )
                for node in function.nodes
            ),
            values,
        )


def _resolved(inside: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with the call's in place of references; those that it leaves out are not set."""
    values = {
        name: given.get(value.name) if isinstance(value, Reference) else value
        for name, value in inside.items()
    }
    return {name: value for name, value in values.items() if value is not None}
