"""Each local function alone, run by ONNX Runtime, against PyTorch's own gradient in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch.nn import grad as torch_grad

from edgeadapt.export.functions import (
    DOMAIN,
    OPSET,
    ConvSpec,
    average_pool_grad,
    conv_input_grad,
    conv_weight_grad,
    leaky_relu_grad,
    resize_grad,
)
from edgeadapt.testing import assert_gradient_close

Array = npt.NDArray[Any]
# A float32 sum of n random terms errs by about 6e-8 sqrt(log2 n) of its norm; the longest here has
# 400. Measured: 3e-7 at the most.
BOUND = 1e-6

PLAIN = ConvSpec((3, 3), (1, 1), (1, 1), (1, 1), 1)
# (spec, input channels, output channels, height, width)
CONVOLUTIONS = {
    "3x3": (PLAIN, 3, 4, 7, 5),
    "1x1": (ConvSpec((1, 1), (1, 1), (0, 0), (1, 1), 1), 3, 4, 5, 6),
    "1x1 of one pixel": (ConvSpec((1, 1), (1, 1), (0, 0), (1, 1), 1), 3, 4, 1, 1),
    "1x1 padded": (ConvSpec((1, 1), (1, 1), (1, 1), (1, 1), 1), 3, 4, 5, 4),
    "1x1 stride 2": (ConvSpec((1, 1), (2, 2), (0, 0), (1, 1), 1), 3, 4, 5, 6),
    "5x5": (replace(PLAIN, kernel_shape=(5, 5), pads=(2, 2)), 2, 3, 6, 9),
    "5x5 of one pixel": (replace(PLAIN, kernel_shape=(5, 5), pads=(2, 2)), 2, 3, 1, 1),
    "4x4 stride 2": (ConvSpec((4, 4), (2, 2), (1, 1), (1, 1), 1), 3, 2, 8, 6),
    "4x4 stride 2, rows left over": (ConvSpec((4, 4), (2, 2), (1, 1), (1, 1), 1), 3, 2, 7, 9),
    "3x1": (replace(PLAIN, kernel_shape=(3, 1), pads=(1, 0)), 3, 4, 5, 7),
    "1x3, padded in the other direction": (replace(PLAIN, kernel_shape=(1, 3)), 3, 4, 5, 7),
    "stride 2": (replace(PLAIN, strides=(2, 2)), 3, 4, 7, 9),
    "stride 2, a row and a column left over": (replace(PLAIN, strides=(2, 2)), 3, 4, 8, 6),
    "stride 3, two rows left over": (replace(PLAIN, strides=(3, 3)), 3, 4, 9, 8),
    "stride 3x1": (replace(PLAIN, strides=(3, 1)), 3, 4, 9, 8),
    "stride 1x2": (replace(PLAIN, strides=(1, 2)), 3, 4, 6, 8),
    "stride 3, no padding": (ConvSpec((2, 2), (3, 3), (0, 0), (1, 1), 1), 2, 3, 10, 8),
    "no padding": (replace(PLAIN, pads=(0, 0)), 3, 4, 3, 6),
    "more padding than the kernel reaches": (replace(PLAIN, pads=(3, 4)), 2, 3, 4, 3),
    "dilated": (ConvSpec((3, 3), (1, 1), (2, 2), (2, 2), 1), 3, 4, 7, 5),
    "dilated 2x3, stride 2": (ConvSpec((3, 3), (2, 2), (1, 2), (2, 3), 1), 3, 4, 9, 12),
    "two groups": (replace(PLAIN, group=2), 4, 6, 5, 7),
    "two groups, stride 2": (replace(PLAIN, group=2, strides=(2, 2)), 6, 4, 6, 8),
    "three groups, 5x4": (ConvSpec((5, 4), (1, 1), (2, 1), (1, 1), 3), 6, 9, 5, 7),
    "two groups of 1x1": (ConvSpec((1, 1), (1, 1), (0, 0), (1, 1), 2), 4, 6, 3, 5),
    "depthwise": (replace(PLAIN, group=5), 5, 5, 6, 7),
    "depthwise, two filters a channel": (replace(PLAIN, group=3), 3, 6, 4, 5),
    "depthwise, stride 2": (replace(PLAIN, group=4, strides=(2, 2)), 4, 4, 7, 6),
}


def run(function: onnx.FunctionProto, inputs: dict[str, Array], **attributes: Any) -> Array:
    """A model of one call of ``function``, with all sizes of its inputs unknown."""
    call = helper.make_node(function.name, list(inputs), ["y"], domain=DOMAIN, **attributes)
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim
        )
        for name, value in inputs.items()
    ]
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph([call], "one", infos, [out]),
        opset_imports=opsets,
        functions=[function],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, inputs)
    return np.asarray(result)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(array: Array) -> torch.Tensor:
    return torch.from_numpy(array).double()


def output_size(spec: ConvSpec, height: int, width: int) -> tuple[int, int]:
    """PyTorch's conv2d documentation, "Shape"; zero or less if the kernel does not fit."""
    sizes = zip(
        (height, width), spec.kernel_shape, spec.strides, spec.pads, spec.dilations, strict=True
    )
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
    return rows, columns


def check_weight_gradient(spec: ConvSpec, ci: int, co: int, height: int, width: int) -> None:
    x, grad_y = normal(1, 1, ci, height, width), normal(2, 1, co, *output_size(spec, height, width))
    shape = (co, ci // spec.group, *spec.kernel_shape)
    expected = torch_grad.conv2d_weight(
        exact(x), shape, exact(grad_y), spec.strides, spec.pads, spec.dilations, spec.group
    )
    actual = run(conv_weight_grad(spec), {"x": x, "grad_y": grad_y}, **spec.attributes())
    assert_gradient_close(actual, expected.numpy(), BOUND)


def check_input_gradient(spec: ConvSpec, ci: int, co: int, height: int, width: int) -> None:
    grad_y = normal(3, 1, co, *output_size(spec, height, width))
    weight = normal(4, co, ci // spec.group, *spec.kernel_shape)
    shape = (1, ci, height, width)
    expected = torch_grad.conv2d_input(
        shape, exact(weight), exact(grad_y), spec.strides, spec.pads, spec.dilations, spec.group
    )
    inputs = {"grad_y": grad_y, "weight": weight}
    if spec.strides != (1, 1):
        inputs["x_shape"] = np.array(shape, np.int64)
    actual = run(conv_input_grad(spec), inputs, **spec.attributes())
    assert_gradient_close(actual, expected.numpy(), BOUND)


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_the_gradient_of_a_convolution_in_its_weight(case: tuple[ConvSpec, int, int, int, int]):
    check_weight_gradient(*case)


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_the_gradient_of_a_convolution_in_its_input(case: tuple[ConvSpec, int, int, int, int]):
    check_input_gradient(*case)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=pairs,
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilations=pairs,
    group=st.integers(1, 3),
    channels=pairs,
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
@settings(max_examples=40)
def test_gradients_of_any_convolution(kernel, strides, pads, dilations, group, channels, size):
    spec = ConvSpec(kernel, strides, pads, dilations, group)
    if min(output_size(spec, *size)) < 1:
        return
    ci, co = group * channels[0], group * channels[1]
    check_weight_gradient(spec, ci, co, *size)
    check_input_gradient(spec, ci, co, *size)


def test_a_weight_gradient_does_not_follow_from_constant_cotangents():
    # What the tests above would be worth with all ones: x exchanged for its mean passes them.
    x, grad_y = normal(1, 1, 2, 6, 5), normal(2, 1, 3, 6, 5)
    by_name = {"x": x, "grad_y": grad_y}
    actual = run(conv_weight_grad(PLAIN), by_name, **PLAIN.attributes())
    by_name["grad_y"] = np.full_like(grad_y, grad_y.mean())
    flat = run(conv_weight_grad(PLAIN), by_name, **PLAIN.attributes())
    assert np.linalg.norm(actual - flat) > 0.5 * np.linalg.norm(actual)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7])
def test_the_gradient_of_a_leaky_relu(alpha: float):
    x, grad_y = normal(5, 1, 4, 6, 7), normal(6, 1, 4, 6, 7)
    x[0, 1] = 0.0  # exact zeros, of both signs: PyTorch takes the slope there
    x[0, 2] = -0.0
    x[0, 3, 0] = np.float32(1e-45)  # the smallest number above zero
    leaf = exact(x).requires_grad_()
    F.leaky_relu(leaf, alpha).backward(exact(grad_y))
    actual = run(leaky_relu_grad(), {"grad_y": grad_y, "x": x}, alpha=alpha)
    assert leaf.grad is not None
    assert_gradient_close(actual, leaf.grad.numpy(), 2.0**-23)  # one product, and alpha rounded


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (2, 3), (4, 6)], ids=str)
def test_the_gradient_of_a_resize(mode: str, scale: int, size: tuple[int, int]):
    x = torch.zeros(1, 3, *size, dtype=torch.float64, requires_grad=True)
    grad_y = normal(7, 1, 3, size[0] * scale, size[1] * scale)
    if mode == "linear":
        y = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    else:
        y = F.interpolate(x, scale_factor=scale, mode="nearest")
    y.backward(exact(grad_y))
    actual = run(resize_grad(scale, mode), {"grad_y": grad_y}, scale=scale, mode=mode)
    assert x.grad is not None
    assert_gradient_close(actual, x.grad.numpy(), BOUND)


POOLS = {
    "2x2": (ConvSpec((2, 2), (2, 2), (0, 0), (1, 1), 1), 6, 4),
    "2x2, a row left over": (ConvSpec((2, 2), (2, 2), (0, 0), (1, 1), 1), 7, 5),
    "2x2 of two pixels": (ConvSpec((2, 2), (2, 2), (0, 0), (1, 1), 1), 2, 2),
    "3x3, overlapping": (ConvSpec((3, 3), (2, 2), (1, 1), (1, 1), 1), 7, 8),
    "3x3, stride 1": (ConvSpec((3, 3), (1, 1), (1, 1), (1, 1), 1), 4, 5),
    "3x2, stride 1x3": (ConvSpec((3, 2), (1, 3), (0, 0), (1, 1), 1), 5, 9),
    "2x2, pixels between the windows": (ConvSpec((2, 2), (3, 3), (0, 0), (1, 1), 1), 8, 6),
}


@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS.keys())
def test_the_gradient_of_an_average_pool(case: tuple[ConvSpec, int, int]):
    spec, height, width = case
    x = torch.zeros(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    y = F.avg_pool2d(x, spec.kernel_shape, spec.strides, spec.pads)
    grad_y = normal(8, *y.shape)
    y.backward(exact(grad_y))
    inputs = {"grad_y": grad_y, "x_shape": np.array(x.shape, np.int64)}
    actual = run(average_pool_grad(spec), inputs, **spec.attributes())
    assert x.grad is not None
    assert_gradient_close(actual, x.grad.numpy(), BOUND)


def test_functions_of_different_attributes_have_different_names():
    # One model holds many; two bodies under one name would be one body.
    specs = [spec for spec, *_ in CONVOLUTIONS.values()]
    for make in (conv_weight_grad, conv_input_grad):
        bodies: dict[str, bytes] = {}
        for spec in specs:
            function = make(spec)
            text = function.SerializeToString(deterministic=True)
            assert bodies.setdefault(function.name, text) == text
        assert len(bodies) == len(set(specs))
