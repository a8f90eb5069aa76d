"""Which calls compute an operation: launches of own kernels, unless a library takes it.

A maker of calls is all that a library has to bring: ``{**OWN, "conv": its_maker}`` lets it compute
convolutions, and its maker may hand on what it does not want to the one in `OWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from edgeadapt.kernels.cuda import (
    conv,
    conv_weight_grad,
    l1_loss,
    matmul,
    pack_weights,
    pad,
    pointwise,
    pool,
    reduce,
)
from edgeadapt.kernels.cuda import resize as resizing
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.runtime.cuda.device import Device, LibraryCall
from edgeadapt.runtime.cuda.memory import DeviceMemory, nowhere
from edgeadapt.runtime.plan.bind import numbered, sources
from edgeadapt.runtime.plan.ir import BYTES, Op, Program, Tensor
from edgeadapt.runtime.plan.lifetimes import ScratchBytes

Call = Launch | LibraryCall


@dataclass(frozen=True)
class Made:
    """What computes an operation, in order, and the device memory it needs meanwhile."""

    calls: tuple[Call, ...]
    scratch_bytes: int = 0


# Of an operation whose tensors lie in a memory; ``scratch`` is the address of its working memory,
# or 0 to ask how much that is: then the calls are not run.
Maker = Callable[[Op, DeviceMemory, int], Made]
Makers = Mapping[str, Maker]


def bind(
    program: Program, makers: Makers, memory: DeviceMemory, scratch: Sequence[int]
) -> list[tuple[Call, ...]]:
    """The calls of each operation of a program.

    ``scratch`` holds, for each operation, the address of its working memory.
    """
    return [
        makers[op.kind](op, memory, address).calls
        for op, address in zip(program.ops, scratch, strict=True)
    ]


def run(device: Device, calls: Iterable[Call]) -> None:
    """Put calls on the device's stream."""
    for call in calls:
        if isinstance(call, Launch):
            device.launch(call)
        else:
            device.call(call)


def scratch_asker(makers: Makers) -> ScratchBytes:
    """A function that asks an operation's maker for the working memory."""
    last: list[DeviceMemory] = []

    def ask(op: Op, program: Program) -> int:
        if not last or last[0].program is not program:
            last[:] = [nowhere(program)]
        return makers[op.kind](op, last[0], 0).scratch_bytes

    return ask


def packed_elements(op: Op, program: Program) -> int:
    """How many elements the packed weights of a convolution take."""
    weight = program.tensors[op.inputs["weight"]]
    return prod(_packed(op.attributes, weight, 0, 0, "f32").packed_shape)


def _packed(
    attributes: Mapping[str, Any], weight: Tensor, source: int, y: int, dtype: str
) -> pack_weights.PackedWeight:
    """A weight of a convolution with these attributes, packed as who computes it wants it."""
    return pack_weights.PackedWeight(
        source,
        y,
        weight.shape,
        attributes["group"],
        bool(attributes["transposed"]),
        attributes["out_channels"],
        dtype,
        "krsc" if attributes.get("algorithm") == "cudnn" else "conv",
        weight.strides,
    )


def conv_spec(attributes: Mapping[str, Any]) -> conv.ConvSpec:
    """What kind of convolution an operation is, or packs the weights for."""
    return conv.ConvSpec(
        attributes["kernel"],
        attributes["strides"],
        attributes["pads"],
        attributes["dilations"],
        attributes["group"],
        bool(attributes["transposed"]),
        attributes.get("compute", "f32"),
    )


def _own(rule: Callable[[Op, DeviceMemory, int], Work]) -> Maker:
    def make(op: Op, memory: DeviceMemory, scratch: int) -> Made:
        work = rule(op, memory, scratch)
        return Made(work.launches, work.scratch_bytes)

    return make


def _conv(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    bias = op.inputs.get("bias")
    images = {
        role: memory.image(op.inputs[role])
        for role in ("add0", "add1", "post", "mask")
        if role in op.inputs
    }
    slope = op.attributes.get("mask_slope")
    return conv.conv(
        conv_spec(op.attributes),
        memory.images(sources(op)),
        memory.flat(op.inputs["weight"]),
        memory.image(op.outputs["y"]),
        bias=None if bias is None else memory.flat(bias),
        slope=op.attributes.get("slope"),
        mask_slope=1.0 if slope is None else slope,
        scratch=scratch,
        **images,
    )


def _pack_together(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    tensors, y = memory.program.tensors, op.outputs["y"]
    dtype = tensors[y].dtype
    parameters = tensors[tensors[op.inputs["weight0"]].base].storage == "weights"
    begin = memory.bases["weights"] if parameters else memory.address(op.inputs["weight0"])
    parts = []
    for number, part in enumerate(op.attributes["parts"]):
        weight = tensors[op.inputs[f"weight{number}"]]
        source = (memory.address(weight.name) - begin) // BYTES["f32"]
        packed = _packed(part, weight, source, part["offset"] * BYTES[dtype], dtype)
        assert packed.nbytes == part["count"] * BYTES[dtype], part
        parts.append(packed)
    table = pack_weights.pack_table(parts)
    address = memory.hold(table.rows)
    return pack_weights.pack_weights(begin, memory.address(y), table, address)


def _no_update(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    """Stands for the update until the engine, which has its state, makes it."""
    return Work(())


def _conv_weight_grad(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    found, bias = op.attributes, op.outputs.get("bias")
    return conv_weight_grad.conv_weight_grad(
        memory.images(sources(op)),
        memory.image(op.inputs["grad_y"]),
        memory.tensor(op.outputs["weight"]),
        None if bias is None else memory.tensor(bias),
        strides=found["strides"],
        pads=found["pads"],
        dilations=found["dilations"],
        group=found["group"],
        bias_of=found["bias_of"] or "grad_y",
        add_weight="sum_weight" in op.inputs,
        add_bias="sum_bias" in op.inputs,
        compute=found.get("compute", "f32"),
        scratch=scratch,
    )


def _reduce(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    x, y = memory.tensor(op.inputs["x"]), memory.tensor(op.outputs["y"])
    return reduce.reduce(x, y, **op.attributes, scratch=scratch)


def _matmul(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    a, b = memory.tensor(op.inputs["a"]), memory.tensor(op.inputs["b"])
    return matmul.matmul(a, b, memory.tensor(op.outputs["y"]), scratch=scratch)


def _l1_loss(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    grad = op.outputs.get("grad")
    return l1_loss.l1_loss(
        memory.image(op.inputs["a"]),
        memory.image(op.inputs["b"]),
        memory.tensor(op.outputs["value"]),
        None if grad is None else memory.image(grad),
        value_scale=op.attributes["value_scale"],
        grad_scale=op.attributes["grad_scale"],
        scratch=scratch,
    )


def _pointwise(op: Op, memory: DeviceMemory, scratch: int) -> Work:
    inputs = [memory.tensor(name) for name in numbered(op)]
    y, expression = memory.tensor(op.outputs["y"]), op.attributes["expression"]
    return pointwise.pointwise(inputs, y, expression, scratch=scratch)


def _images(function: Callable[..., Work], *roles: str) -> Maker:
    """A kernel whose operands are images; its keywords are the operation's attributes."""

    def rule(op: Op, memory: DeviceMemory, scratch: int) -> Work:
        images = {role: memory.image(op.inputs[role]) for role in roles if role in op.inputs}
        y = memory.image(op.outputs["y"])
        return function(**images, y=y, **op.attributes, scratch=scratch)

    return _own(rule)


def _tensors(function: Callable[..., Work], role: str) -> Maker:
    def rule(op: Op, memory: DeviceMemory, scratch: int) -> Work:
        x, y = memory.tensor(op.inputs[role]), memory.tensor(op.outputs["y"])
        return function(x, y, **op.attributes, scratch=scratch)

    return _own(rule)


OWN: Makers = {
    "conv": _own(_conv),
    "pack_together": _own(_pack_together),
    "update_together": _own(_no_update),
    "conv_weight_grad": _own(_conv_weight_grad),
    "reduce": _own(_reduce),
    "matmul": _own(_matmul),
    "l1_loss": _own(_l1_loss),
    "pointwise": _own(_pointwise),
    "resize": _images(resizing.resize, "x", "add"),
    "resize_grad": _images(resizing.resize_grad, "grad_y", "add"),
    "avg_pool": _images(pool.avg_pool, "x"),
    "avg_pool_grad": _images(pool.avg_pool_grad, "grad_y", "add"),
    "max_pool": _images(pool.max_pool, "x"),
    "max_pool_grad": _images(pool.max_pool_grad, "grad_y", "x"),
    "pad": _tensors(pad.pad, "x"),
    "pad_grad": _tensors(pad.pad_grad, "grad_y"),
}
