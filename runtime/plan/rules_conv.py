"""Rules of convolutions, and of their gradients in the weights and in the input."""

from __future__ import annotations

from typing import Any

from edgeadapt.runtime.plan.ir import Shape, Tensor
from edgeadapt.runtime.plan.rules import Builder, Node, NoRuleError, Value, ints, reads, require
from edgeadapt.runtime.plan.shapes import spread, windows

Pair = tuple[int, int]


def window(node: Node, kernel: Shape) -> dict[str, Any]:
    """Kernel, strides, pads and dilations of a node, with ONNX's defaults; 2-D only."""
    require(node, auto_pad="NOTSET")
    if len(kernel) != 2:
        raise NoRuleError(f"in {len(kernel)} dimensions, where it takes 2")
    return {
        "kernel": kernel,
        "strides": tuple(node.attributes.get("strides", (1, 1))),
        "pads": tuple(node.attributes.get("pads", (0, 0, 0, 0))),
        "dilations": tuple(node.attributes.get("dilations", (1, 1))),
    }


def sizes(x: Shape, found: dict[str, Any], ceil: bool = False) -> Pair:
    """Height and width that windows over ``x`` give."""
    height, width = (
        windows(
            x[2 + axis],
            found["kernel"][axis],
            found["strides"][axis],
            found["pads"][axis] + found["pads"][axis + 2],
            found["dilations"][axis],
            ceil,
        )
        for axis in (0, 1)
    )
    return height, width


def _attributes(node: Node, weight: Value) -> dict[str, Any]:
    kernel = tuple(node.attributes.get("kernel_shape", weight.shape[2:]))
    return {**window(node, kernel), "group": int(node.attributes.get("group", 1))}


def _conv(
    builder: Builder,
    node: Node,
    x: Value,
    weight: Value,
    bias: Value | None,
    shape: Shape,
    transposed: bool,
    attributes: dict[str, Any],
) -> Tensor:
    inputs = {"weight": builder.dense(weight)}
    if bias is not None:
        inputs["bias"] = builder.dense(bias)
    y = builder.result(node.name, shape)
    attributes |= {"transposed": transposed, "slope": None, "mask_slope": None}
    attributes["out_channels"] = (0, shape[1])
    whole = builder.tensor(x)
    for index in range(shape[0]):  # a kernel takes one image at a time
        image = builder.plane(builder.entry(whole, index))
        part = builder.entry(y, index)
        builder.emit("conv", {"x0": image, **inputs}, part, node.name, **attributes)
    return y


@reads("Conv")
def conv(builder: Builder, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    found = _attributes(node, weight)
    shape = (x.shape[0], weight.shape[0], *sizes(x.shape, found))
    return _conv(builder, node, x, weight, bias, shape, False, found)


@reads("ConvTranspose")
def conv_transpose(
    builder: Builder, node: Node, x: Value, weight: Value, bias: Value | None = None
) -> Value:
    require(node, output_shape=())
    found = _attributes(node, weight)
    extra = node.attributes.get("output_padding", (0, 0))
    pads = found["pads"]
    lengths = (
        spread(x.shape[2 + axis], kernel, stride, pads[axis] + pads[axis + 2], dilation)
        for axis, (kernel, stride, dilation) in enumerate(
            zip(found["kernel"], found["strides"], found["dilations"], strict=True)
        )
    )
    height, width = (length + more for length, more in zip(lengths, extra, strict=True))
    shape = (x.shape[0], weight.shape[1] * found["group"], height, width)
    return _conv(builder, node, x, weight, bias, shape, True, found)


@reads("edgeadapt.ConvInputGrad")
def conv_input_gradient(
    builder: Builder, node: Node, grad_y: Value, weight: Value, x_shape: Value | None = None
) -> Value:
    """The transposed convolution with the same weights; strides leave the size of x open."""
    shape = ints(x_shape)
    if shape is None:
        return conv_transpose(builder, node, grad_y, weight)
    return _conv(builder, node, grad_y, weight, None, shape, True, _attributes(node, weight))


@reads("edgeadapt.ConvWeightGrad")
def conv_weight_gradient(builder: Builder, node: Node, x: Value, grad_y: Value) -> Value:
    found = window(node, tuple(node.attributes["kernel_shape"]))
    group = int(node.attributes.get("group", 1))
    shape = (grad_y.shape[1], x.shape[1] // group, *found["kernel"])
    inputs = {"x0": builder.plane(x), "grad_y": builder.plane(grad_y)}
    weight = builder.result(node.name, shape)
    builder.emit(
        "conv_weight_grad", inputs, weight, node.name, role="weight",
        **found, group=group, bias_of="grad_y",
    )  # fmt: skip
    return weight
