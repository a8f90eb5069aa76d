"""Lowerings of convolutions, pooling and resizing, and of their gradients."""

from __future__ import annotations

from edgeadapt.errors import ExportError
from edgeadapt.export.functions import (
    ConvSpec,
    average_pool_grad,
    conv_input_grad,
    conv_weight_grad,
    max_pool_grad,
    resize_grad,
)
from edgeadapt.export.graph import GraphBuilder, Value
from edgeadapt.export.lowering import lowers

Ints = list[int]


@lowers("aten.convolution.default")
def convolution(
    graph: GraphBuilder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> str:
    if x.rank != 4:
        raise ExportError(f"only 2-D convolutions have a lowering, got {x.rank - 2}-D.")
    inputs = [x, weight] if bias is None else [x, weight, bias]
    attributes = _spec(list(weight.meta.shape[2:]), stride, padding, dilation, groups).attributes()
    if transposed:
        return graph.op("ConvTranspose", *inputs, output_padding=list(output_padding), **attributes)
    return graph.op("Conv", *inputs, **attributes)


@lowers("edgeadapt.conv_weight_grad.default")
def weight_grad(
    graph: GraphBuilder,
    x: Value,
    grad_y: Value,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> str:
    if x.meta.shape[0] != 1:
        raise ExportError(
            f"the gradient of a convolution takes one image at a time, got {x.meta.shape[0]}.",
            "call the network once for each image instead of joining images to a batch.",
        )
    spec = _spec(kernel, stride, padding, dilation, groups)
    return graph.call(conv_weight_grad(spec), x, grad_y, **spec.attributes())


@lowers("edgeadapt.conv_input_grad.default")
def input_grad(
    graph: GraphBuilder,
    x: Value,
    grad_y: Value,
    weight: Value,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> str:
    spec = _spec(list(weight.meta.shape[2:]), stride, padding, dilation, groups)
    shape = () if spec.strides == (1, 1) else (graph.op("Shape", x),)
    return graph.call(conv_input_grad(spec), grad_y, weight, *shape, **spec.attributes())


@lowers("edgeadapt.resize.default")
def resize(graph: GraphBuilder, x: Value, scale: int, mode: str) -> str:
    scales = graph.constant([1, 1, scale, scale], "float32")
    if mode == "nearest":
        options = {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        }
    else:
        options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph.op("Resize", x, "", scales, **options)


@lowers("edgeadapt.resize_grad.default")
def resize_gradient(graph: GraphBuilder, x: Value, grad_y: Value, scale: int, mode: str) -> str:
    name = "nearest" if mode == "nearest" else "linear"
    return graph.call(resize_grad(scale, name), grad_y, scale=scale, mode=name)


@lowers("aten.avg_pool2d.default")
def average_pool(
    graph: GraphBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = [],  # noqa: B006  PyTorch's own default, never changed
    padding: Ints = [0, 0],  # noqa: B006
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    spec = _pool_spec(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    attributes = spec.attributes()
    del attributes["group"], attributes["dilations"]
    return graph.op("AveragePool", x, count_include_pad=1, **attributes)


@lowers("aten.avg_pool2d_backward.default")
def average_pool_gradient(
    graph: GraphBuilder,
    grad_y: Value,
    x: Value,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> str:
    spec = _pool_spec(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return graph.call(average_pool_grad(spec), grad_y, graph.op("Shape", x), **spec.attributes())


@lowers("aten.max_pool2d_with_indices.default")
def max_pool(
    graph: GraphBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = [],  # noqa: B006
    padding: Ints = [0, 0],  # noqa: B006
    dilation: Ints = [1, 1],  # noqa: B006
    ceil_mode: bool = False,
) -> list[str]:
    attributes = _spec(kernel, stride or kernel, padding, dilation, 1).attributes()
    del attributes["group"]
    largest = graph.op("MaxPool", x, ceil_mode=int(ceil_mode), **attributes)
    return [
        largest,
        "",
    ]  # the gradient finds the indices again: they would be a tensor more to keep


@lowers("aten.max_pool2d_with_indices_backward.default")
def max_pool_gradient(
    graph: GraphBuilder,
    grad_y: Value,
    x: Value,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    indices: Value,
) -> str:
    spec = _spec(kernel, stride or kernel, padding, dilation, 1)
    function = max_pool_grad(spec, ceil_mode)
    return graph.call(function, grad_y, x, ceil_mode=int(ceil_mode), **spec.attributes())


def _pool_spec(
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> ConvSpec:
    if ceil_mode or divisor is not None or (any(padding) and not include_pad):
        raise ExportError(
            "average pooling has a lowering only with floor sizes and padding counted as zeros."
        )
    return _spec(kernel, stride or kernel, padding, [1, 1], 1)


def _spec(kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> ConvSpec:
    def pair(values: Ints) -> tuple[int, int]:
        return int(values[0]), int(values[-1])

    return ConvSpec(pair(kernel), pair(stride), pair(padding), pair(dilation), groups)
