"""Writes 16 bits into a graph: casts between the operators that need float32 and those that do not.

The result is strongly typed, as TensorRT from 11 on wants it: every operator's arguments are of the
type that it computes in. Inputs and outputs keep their names and stay float32. `cast_rules` says
which operator computes in what, and `cast_factor` what keeps gradients in the range of float16.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model
from onnx.shape_inference import InferenceError
from onnx.version_converter import ConvertError, convert_version

from edgeadapt.bundle import Bundle
from edgeadapt.cast_factor import Factor
from edgeadapt.cast_facts import Facts, find_facts, is_product_with_weights
from edgeadapt.cast_rules import LIMITS, Precision, Rule, rule_of
from edgeadapt.errors import BundleError, one_line
from edgeadapt.files import atomic_file
from edgeadapt.graphs import read_graph

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPE_NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
_BF16_OPSET = 22  # the first in which convolutions and pools take bfloat16
_BF16_IR = 10  # of the same release


def cast_model(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A copy of a bundle's float32 graph that computes in ``precision`` where that is safe.

    Local functions become plain nodes. Inputs and outputs are those of ``model``: same names, same
    order, float32. A parameter, be it an input or an initialiser, is cast by one node, which
    engines fold where its value is known. "fp32" gives a copy with nothing changed.

    Raises:
        BundleError: if the graph cannot be brought to 16 bits: it has graphs within nodes,
            operators whose results have no known type, or is no graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if precision == "fp32":
        return result
    _opset(result)
    try:
        result = onnx.inliner.inline_local_functions(result)
        if precision == "bf16" and _opset(result) < _BF16_OPSET:
            result = convert_version(result, _BF16_OPSET)
            result.ir_version = max(result.ir_version, _BF16_IR)
        caster = _Caster(find_facts(result), precision, _opset(result))
    except (RuntimeError, ConvertError, InferenceError) as error:
        raise BundleError(
            f"the graph cannot be brought to {precision} ({one_line(error)}).", "use fp32."
        ) from error
    nodes = caster.cast(result.graph)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    domains = {"", "ai.onnx"} | {node.domain for node in nodes}
    imports = [one for one in result.opset_import if one.domain in domains]
    del result.opset_import[:]  # that of the functions
    result.opset_import.extend(imports)
    return result


def cast_graph(bundle: Bundle, graph: str, precision: Precision) -> onnx.ModelProto:
    """`cast_model` of a bundle's graph ("restore.onnx", say) with all weights in the model itself.

    What it gives is complete: `SerializeToString` is all that an engine's parser needs.

    Raises:
        BundleError: as `cast_model`, naming the file.
    """
    file = bundle.path / graph
    model = read_graph(file)
    load_external_data_for_model(model, str(bundle.path))
    try:
        return cast_model(model, precision)
    except BundleError as error:
        raise BundleError(f"{file}: {error.message}", error.hint) from error


def save_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write a model as an ONNX file, whole or not at all.

    External data is left where it is: a model that has any, as those of a bundle before
    `cast_graph`, must lie beside it.
    """
    with atomic_file(file) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _opset(model: onnx.ModelProto) -> int:
    found = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    if len(found) != 1:
        raise BundleError(
            f"the graph names {len(found)} versions of ONNX's operators, not one.",
            "export the bundle again.",
        )
    return found[0]


class _Caster:
    """Goes through a graph once. Each value has a float32 name, its own, or a 16-bit one, or both,
    depending on who made it and who reads it.
    """

    def __init__(self, facts: Facts, precision: Precision, opset: int) -> None:
        self._facts = facts
        self._precision = precision
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._half: dict[str, str] = {}  # value -> its 16-bit name, where it has one
        self._made_half: set[str] = set()  # values that were made in 16 bits
        self._widened: set[str] = set()  # of those, the ones with a float32 copy
        self._factor = Factor(facts, precision)

    def cast(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """The nodes of the graph that computes the same in 16 bits, in order."""
        for node in graph.node:
            if rule_of(node.op_type, node.domain) is Rule.SIZE:
                self._copy(node, {name: self._any_type(name) for name in node.input}, {})
                self._factor.note(node, None)
            elif (inputs := self._half_inputs(node)) is not None:
                self._compute_half(node, inputs)
            else:
                self._copy(node, {name: self._as_wide(name) for name in node.input}, {})
                self._factor.note(node, None)
        for value in graph.output:
            self._as_wide(value.name)
        return _named(self._factor.insert(self._nodes))

    def _half_inputs(self, node: onnx.NodeProto) -> list[str] | None:
        """The inputs that a node reads in 16 bits; None if it computes in float32."""
        inputs, outputs = self._same_type(node)
        if not outputs and not _is_comparison(node):
            return None
        if not inputs or not self._wants_half(node, inputs, outputs):
            return None
        if not all(self._fits(name) for name in inputs):
            return None
        return inputs if self._factor.allows(node, inputs) else None

    def _fits(self, name: str) -> bool:
        """Whether 16 bits hold a number of a formula. Of arrays, which are weights or kernels,
        what is too small to be held is too small next to the rest to matter.
        """
        value = self._facts.constants.get(name)
        if value is None or value.size != 1 or not value.any():
            return True
        low, high = LIMITS[self._precision]
        return low <= abs(float(value.item())) <= high

    def _wants_half(self, node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> bool:
        rule = rule_of(node.op_type, node.domain)
        if rule is Rule.PRODUCT:
            return is_product_with_weights(node, self._facts.varying)
        if rule is Rule.MOVE and all(name in self._facts.rounded for name in outputs):
            return True
        if rule is Rule.WIDE or (node.op_type == "Mul" and node.input[0] == node.input[1]):
            return False  # a square is a power
        activations = [name for name in inputs if name in self._facts.varying]
        return bool(activations) and all(name in self._made_half for name in activations)

    def _same_type(self, node: onnx.NodeProto) -> tuple[list[str], list[str]]:
        """The float32 inputs and outputs that must be of one type, which may be of 16 bits."""
        if node.domain not in ("", "ai.onnx"):
            return [], []
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        formal = schema.inputs if _is_comparison(node) else schema.outputs
        variable = formal[0].type_str
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        if _TYPE_NAMES[self._precision] not in allowed.get(variable, ()):
            return [], []

        def of_variable(
            names: list[str], formals: list[onnx.defs.OpSchema.FormalParameter]
        ) -> list[str]:
            last = len(formals) - 1  # the last may stand for any number
            return [
                name
                for index, name in enumerate(names)
                if name in self._facts.floats and formals[min(index, last)].type_str == variable
            ]

        return (
            of_variable(list(node.input), list(schema.inputs)),
            of_variable(list(node.output), list(schema.outputs)),
        )

    def _compute_half(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        names = {n: self._as_half(n) if n in inputs else self._as_wide(n) for n in node.input}
        _, outputs = self._same_type(node)
        for name in outputs:
            self._half[name] = self._facts.fresh(f"{name}.{self._precision}")
            self._made_half.add(name)
        self._factor.note(node, inputs)
        self._copy(node, names, {name: self._half[name] for name in outputs})

    def _copy(self, node: onnx.NodeProto, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs[name] for name in node.input)
        copy.output.extend(outputs.get(name, name) for name in node.output)
        self._nodes.append(copy)

    def _any_type(self, name: str) -> str:
        return self._half[name] if name in self._made_half else name

    def _as_half(self, name: str) -> str:
        if name not in self._half:
            self._half[name] = self._facts.fresh(f"{name}.{self._precision}")
            source = self._factor.multiply(name, self._nodes)
            self._add_cast(source, self._half[name], _TYPES[self._precision])
        return self._half[name]

    def _as_wide(self, name: str) -> str:
        if name in self._made_half and name not in self._widened:
            self._widened.add(name)
            after: list[onnx.NodeProto] = []
            target = self._factor.divide(name, after)
            self._add_cast(self._half[name], target, TensorProto.FLOAT)
            self._nodes += after
        return name

    def _add_cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(onnx.helper.make_node("Cast", [source], [target], to=to))


def _named(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Each node called as its first result, since the bodies of a function share their names."""
    for node in nodes:
        node.name = next(filter(None, node.output))
    return nodes


def _is_comparison(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
