"""The table of rules by which operators of ONNX become operations of a plan.

A rule is a function of the builder, the node, and the node's inputs: arrays that are known while
reading (everything that follows from sizes and constants), tensors, or None where one is left out.
It adds operations and returns the node's result. The rules are in the files ``rules_*.py``; what
can be computed while reading never gets to one (`edgeadapt.runtime.plan.read_fold`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from edgeadapt.runtime.plan.read_builder import Builder, NoRuleError, Value
from edgeadapt.runtime.plan.read_nodes import Node

Rule = Callable[..., Value]
_RULES: dict[str, Rule] = {}
_R = TypeVar("_R", bound=Rule)
LOCAL = "edgeadapt"  # the domain of the exporter's functions


def reads(*operators: str) -> Callable[[_R], _R]:
    """Register a rule for operators of ONNX; those of the exporter's functions as
    "edgeadapt.Name", without the attributes that follow in a function's name.
    """

    def register(rule: _R) -> _R:
        for operator in operators:
            assert operator not in _RULES, operator
            _RULES[operator] = rule
        return rule

    return register


def rules() -> Mapping[str, Rule]:
    """Every rule there is."""
    from edgeadapt.runtime.plan import (  # noqa: F401  they register themselves
        rules_conv,
        rules_pointwise,
        rules_reduce,
        rules_shape,
        rules_window,
    )

    return _RULES


def operator(node: Node) -> str:
    """What the rule for ``node`` is registered under."""
    if node.domain == LOCAL:
        return f"{LOCAL}.{node.kind.split('_')[0]}"
    return f"{node.domain}.{node.kind}" if node.domain else node.kind


def ints(value: Value | None) -> tuple[int, ...] | None:
    """The numbers in an input that must be known; None if it is left out."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        raise NoRuleError("with sizes or indices that depend on the image's values")
    return tuple(int(number) for number in value.reshape(-1))


def number(value: Value) -> float | None:
    """The one number that a known input consists of; None if it is a tensor or holds several."""
    if not isinstance(value, np.ndarray) or not value.size:
        return None
    once = value[tuple(slice(0, 1 if stride == 0 else None) for stride in value.strides)]
    first = once.reshape(-1)[0]
    return float(first) if once.size == 1 or bool((once == first).all()) else None


def require(node: Node, **values: object) -> None:
    """Refuse attributes with other values than the only ones a kernel computes."""
    for name, only in values.items():
        if node.attributes.get(name, only) != only:
            raise NoRuleError(f"with {name} {node.attributes[name]!r}")


__all__ = [
    "LOCAL", "Builder", "NoRuleError", "Node", "Rule", "Value",
    "ints", "number", "operator", "reads", "require", "rules",
]  # fmt: skip
