"""The last stage: each operation becomes a call of a kernel, with addresses in its arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edgeadapt.kernels import (
    conv,
    conv_weight_grad,
    l1_loss,
    matmul,
    pad,
    pointwise,
    pool,
    reduce,
    update,
)
from edgeadapt.kernels import resize as resizing
from edgeadapt.kernels.library import LANES, Call, Kernel, Library
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.memory import Memory, nowhere

Arguments = ctypes.Structure
Rule = Callable[[Op, Memory], Arguments]


def kernel_name(op: Op) -> str:
    """The kernel that computes an operation."""
    if op.kind in ("pack_weights", "conv"):
        return conv_spec(op).kernels[op.kind == "conv"]
    return "sgd" if op.kind == "update_sgd" else op.kind


def kernel_arguments(op: Op, memory: Memory) -> Arguments:
    """The arguments of that kernel."""
    return RULES[op.kind](op, memory)


class Kernels:
    """The kernels of a library at one level, looked up once each."""

    def __init__(self, library: Library, level: str) -> None:
        self._library, self._level = library, level
        self.vectors = conv.Vectors(LANES[level], level.endswith("bf16"))
        self._found: dict[str, Kernel] = {}

    def find(self, op: Op, arguments: type[Arguments]) -> Kernel:
        """The kernel that computes ``op``, whose arguments are an ``arguments``."""
        name = kernel_name(op)
        if name not in self._found:
            self._found[name] = self._library.kernel(self._level, name, arguments)
        return self._found[name]

    def scratch_bytes(self, threads: int) -> Callable[[Op, Program], int]:
        """A function that asks an operation's kernel for its working memory."""
        last: list[Memory] = []

        def ask(op: Op, program: Program) -> int:
            if not last or last[0].program is not program:
                last[:] = [nowhere(program)]
            arguments = kernel_arguments(op, last[0])
            return self.find(op, type(arguments)).scratch_bytes(arguments, threads)

        return ask


class Bound(NamedTuple):
    """Calls that can be run again and again, and what they point to."""

    calls: Any  # an array of `Call`
    arguments: Sequence[Arguments]
    memory: Memory


def bind(program: Program, kernels: Kernels, memory: Memory, scratch: Sequence[int]) -> Bound:
    """The calls of a program whose tensors lie in ``memory``.

    ``scratch`` holds, for each operation, the address of its working memory.
    """
    calls = (Call * len(program.ops))()
    kept = []
    for position, (op, address) in enumerate(zip(program.ops, scratch, strict=True)):
        arguments: Any = kernel_arguments(op, memory)
        if hasattr(arguments, "scratch"):
            arguments.scratch = address
        calls[position] = kernels.find(op, type(arguments)).call(arguments)
        kept.append(arguments)
    return Bound(calls, kept, memory)


def packed_elements(op: Op, program: Program) -> int:
    """How many float32 the engine's order of a convolution's weights takes."""
    return conv_spec(op).packed_size(conv_channels(op, program), op.attributes["out_channels"][1])


def conv_channels(op: Op, program: Program) -> int:
    """Channels of a convolution's input, all sources together."""
    return sum(program.tensors[name].shape[1] for name in sources(op))


def numbered(op: Op) -> list[str]:
    """Inputs x0, x1, ... in the order of their numbers."""
    roles = sorted((role for role in op.inputs if role.startswith("x")), key=_number)
    return [op.inputs[role] for role in roles]


def _number(role: str) -> int:
    return int(role.lstrip("x"))


def sources(op: Op) -> list[str]:
    """What a convolution reads as if it were one image."""
    return [op.inputs[role] for role in ("x0", "x1", "x2", "x3") if role in op.inputs]


def conv_spec(op: Op) -> conv.ConvSpec:
    """What kind of convolution an operation is, or packs the weights for."""
    found = op.attributes
    return conv.ConvSpec(
        found["kernel"],
        found["strides"],
        found["pads"],
        found["dilations"],
        found["group"],
        bool(found["transposed"]),
        found.get("compute", "f32"),
        found.get("algorithm", "direct"),
    )


def _conv(op: Op, memory: Memory) -> Arguments:
    bias = op.inputs.get("bias")
    images = {
        role: memory.plane(op.inputs[role])
        for role in ("add0", "add1", "post", "mask")
        if role in op.inputs
    }
    slope = op.attributes.get("mask_slope")
    return conv.conv(
        conv_spec(op),
        memory.planes(sources(op)),
        memory.tensor(op.inputs["weight"]),
        memory.plane(op.outputs["y"]),
        bias=None if bias is None else memory.tensor(bias),
        slope=op.attributes.get("slope"),
        mask_slope=1.0 if slope is None else slope,
        **images,
    )


def _pack_weights(op: Op, memory: Memory) -> Arguments:
    weight, packed = memory.tensor(op.inputs["weight"]), memory.tensor(op.outputs["y"])
    return conv.pack_weights(conv_spec(op), weight, packed, op.attributes["out_channels"])


def _conv_weight_grad(op: Op, memory: Memory) -> Arguments:
    found, bias = op.attributes, op.outputs.get("bias")
    return conv_weight_grad.conv_weight_grad(
        memory.planes(sources(op)),
        memory.plane(op.inputs["grad_y"]),
        memory.tensor(op.outputs["weight"]),
        None if bias is None else memory.tensor(bias),
        strides=found["strides"],
        pads=found["pads"],
        dilations=found["dilations"],
        group=found["group"],
        bias_of=found["bias_of"] or "grad_y",
        add_weight="sum_weight" in op.inputs,
        add_bias="sum_bias" in op.inputs,
    )


def _pointwise(op: Op, memory: Memory) -> Arguments:
    inputs = [memory.tensor(name) for name in numbered(op)]
    return pointwise.pointwise(inputs, memory.tensor(op.outputs["y"]), op.attributes["expression"])


def _reduce(op: Op, memory: Memory) -> Arguments:
    found = op.attributes
    return reduce.reduce(
        memory.tensor(op.inputs["x"]),
        memory.tensor(op.outputs["y"]),
        found["how"],
        found["axes"],
        before=found["before"],
        after=found["after"],
        scale=found["scale"],
    )


def _matmul(op: Op, memory: Memory) -> Arguments:
    a, b = memory.tensor(op.inputs["a"]), memory.tensor(op.inputs["b"])
    return matmul.matmul(a, b, memory.tensor(op.outputs["y"]))


def _planes(function: Callable[..., Arguments], *roles: str) -> Rule:
    """A kernel whose operands are images; its keywords are the operation's attributes."""

    def rule(op: Op, memory: Memory) -> Arguments:
        images = {role: memory.plane(op.inputs[role]) for role in roles if role in op.inputs}
        return function(**images, y=memory.plane(op.outputs["y"]), **op.attributes)

    return rule


def _tensors(function: Callable[..., Arguments], role: str) -> Rule:
    def rule(op: Op, memory: Memory) -> Arguments:
        x, y = memory.tensor(op.inputs[role]), memory.tensor(op.outputs["y"])
        return function(x, y, **op.attributes)

    return rule


class _Segment(ctypes.Structure):
    """One run of elements with one step size; lives as long as the arguments that point to it."""

    _fields_ = (
        ("begin", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("step_size", ctypes.c_double),
    )


class _SgdArgs(update.SgdArgs):
    """The kernel's arguments; ``segment`` is what they point to."""

    segment: _Segment


def _update_sgd(op: Op, memory: Memory) -> Arguments:
    weight, size = op.inputs["weight"], memory.program.tensors[op.inputs["weight"]].size
    segment = _Segment(0, size, op.attributes["step_size"])
    at = ctypes.addressof(segment)
    addresses = (at + getattr(_Segment, name).offset for name in ("begin", "count", "step_size"))
    segments = update.SegmentsArgs(*addresses, 1, size)
    arguments = _SgdArgs(memory.address(weight), memory.address(op.inputs["grad"]), segments)
    arguments.segment = segment
    return arguments


def _l1_loss(op: Op, memory: Memory) -> Arguments:
    grad = op.outputs.get("grad")
    return l1_loss.l1_loss(
        memory.plane(op.inputs["a"]),
        memory.plane(op.inputs["b"]),
        memory.tensor(op.outputs["value"]),
        None if grad is None else memory.plane(grad),
        value_scale=op.attributes["value_scale"],
        grad_scale=op.attributes["grad_scale"],
    )


RULES: Mapping[str, Rule] = {
    "conv": _conv,
    "pack_weights": _pack_weights,
    "conv_weight_grad": _conv_weight_grad,
    "pointwise": _pointwise,
    "reduce": _reduce,
    "matmul": _matmul,
    "resize": _planes(resizing.resize, "x", "add"),
    "resize_grad": _planes(resizing.resize_grad, "grad_y", "add"),
    "avg_pool": _planes(pool.avg_pool, "x"),
    "avg_pool_grad": _planes(pool.avg_pool_grad, "grad_y", "add"),
    "max_pool": _planes(pool.max_pool, "x"),
    "max_pool_grad": _planes(pool.max_pool_grad, "grad_y", "x"),
    "pad": _tensors(pad.pad, "x"),
    "pad_grad": _tensors(pad.pad_grad, "grad_y"),
    "l1_loss": _l1_loss,
    "update_sgd": _update_sgd,
}
