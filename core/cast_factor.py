"""Keeps gradients in the range of float16 while they are held in it.

The gradient of a mean over 1280x720 pixels is 3.6e-7 everywhere, which float16 holds with two bits
or loses. A backward pass is linear in it. So where a gradient is cast to float16 it is multiplied
by a factor, and where it is cast back it is divided by it; the factor is the reciprocal of the
largest gradient with which the backward pass starts, found while the graph runs, so that it fits
any loss and any size of the image. What is not linear in a gradient stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from edgeadapt.cast_facts import Facts
from edgeadapt.cast_rules import BILINEAR, LINEAR

_SMALLEST = 2.0**-100  # of a factor's reciprocal: of gradients that are all 0, any will do


class Factor:
    """Which 16-bit values have the factor in front of them, and the nodes that find it."""

    def __init__(self, facts: Facts, precision: str) -> None:
        self._facts = facts
        self._gradients = facts.gradients if _needs_factor(precision) else frozenset()
        self._half: set[str] = set()  # values that were made in 16 bits
        self._with: set[str] = set()  # of those, the ones that have the factor
        self._after: set[str] = set()  # values of either type that were computed from such
        self._starts: list[str] = []
        self._factor, self._reciprocal, self._smallest = (
            facts.fresh(f"gradient.{name}") for name in ("factor", "reciprocal", "smallest")
        )

    def allows(self, node: onnx.NodeProto, inputs: list[str]) -> bool:
        """Whether a node may compute in 16 bits: all parts of its result would have the factor, or
        none, and no part twice.
        """
        return self._degree(node, inputs) is not None

    def note(self, node: onnx.NodeProto, inputs: list[str] | None) -> None:
        """A node computes in 16 bits from ``inputs``, or in float32 (None)."""
        if inputs is not None:
            self._half.update(node.output)
            if self._degree(node, inputs):
                self._with.update(node.output)
        if any(name in self._after or name in self._with for name in node.input):
            self._after.update(node.output)

    def multiply(self, name: str, nodes: list[onnx.NodeProto]) -> str:
        """What to cast to 16 bits for a float32 value: itself, or a multiple that is made here."""
        if name not in self._gradients:
            return name
        if name not in self._after:
            self._starts.append(name)
        multiple = self._facts.fresh(f"{name}.times")
        nodes.append(helper.make_node("Mul", [name, self._factor], [multiple]))
        return multiple

    def divide(self, name: str, nodes: list[onnx.NodeProto]) -> str:
        """What to call the float32 copy of a 16-bit value, from which the value is made here."""
        if name not in self._with:
            return name
        multiple = self._facts.fresh(f"{name}.times")
        nodes.append(helper.make_node("Mul", [multiple, self._reciprocal], [name]))
        return multiple

    def insert(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes in an order in which each follows what it reads, with those of the factor."""
        return _sorted([*nodes, *self._find()]) if self._starts else nodes

    def _find(self) -> Iterator[onnx.NodeProto]:
        smallest = helper.make_tensor("", TensorProto.FLOAT, [], [_SMALLEST])
        yield helper.make_node("Constant", [], [self._smallest], value=smallest)
        found = [self._smallest]
        for name in self._starts:
            size, largest = (self._facts.fresh(f"{name}.{one}") for one in ("size", "largest"))
            yield helper.make_node("Abs", [name], [size])
            yield helper.make_node("ReduceMax", [size], [largest], keepdims=0)
            found.append(largest)
        yield helper.make_node("Max", found, [self._reciprocal])
        yield helper.make_node("Reciprocal", [self._reciprocal], [self._factor])

    def _has(self, name: str) -> bool:
        """Whether the 16-bit form of a value has the factor, also where there is none yet."""
        return name in (self._with if name in self._half else self._gradients)

    def _degree(self, node: onnx.NodeProto, inputs: list[str]) -> int | None:
        """How often the factor is in the result; None: it cannot be told, or more than once."""
        zeros = {
            n for n in inputs if n in self._facts.constants and not self._facts.constants[n].any()
        }
        degrees = [int(self._has(name)) for name in inputs]
        if node.op_type in BILINEAR:
            total = sum(degrees[:2])
            added = degrees[2:]  # a bias
            return total if total <= 1 and all(one == total for one in added) else None
        if node.op_type in LINEAR:
            found = {d for d, name in zip(degrees, inputs, strict=True) if name not in zeros}
            return None if len(found) > 1 else max(found, default=0)
        return None if any(degrees) and node.op_type != "Sign" else 0


def _needs_factor(precision: str) -> bool:
    return precision == "fp16"  # bfloat16 has the range of float32


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """In the given order but where a node reads what a later one makes: that one goes first."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    placed: set[int] = set()
    entered: set[int] = set()
    result: list[onnx.NodeProto] = []
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            at = waiting[-1]
            before = [makers[n] for n in nodes[at].input if n in makers]
            missing = [index for index in before if index not in placed]
            if missing:
                entered.add(at)
                assert entered.isdisjoint(missing), f"{nodes[at].op_type} needs its own result"
                waiting.extend(missing)
                continue
            waiting.pop()
            if at not in placed:
                placed.add(at)
                result.append(nodes[at])
    return result
