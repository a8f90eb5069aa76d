"""The gradient of a convolution in its weight and bias: csrc/conv_weight_grad.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_sources
from edgeadapt.kernels.tensors import F32, PlaneArgs, TensorArgs

MAX_SOURCES = 4
BIAS_OF = {None: 0, "grad_y": 1, "x": 2}
_NAME = "conv_weight_grad"


class ConvWeightGradArgs(ctypes.Structure):
    """`ConvWeightGradArgs` of csrc/weight_grad_plan.h."""

    _fields_ = (
        ("x", PlaneArgs * MAX_SOURCES),
        ("grad_y", PlaneArgs),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("add_weight", ctypes.c_int64),
        ("add_bias", ctypes.c_int64),
        ("bias_of", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * 2),
        ("strides", ctypes.c_int64 * 2),
        ("pads", ctypes.c_int64 * 2),
        ("dilations", ctypes.c_int64 * 2),
        ("group", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
    )


def conv_weight_grad(
    x: Sequence[PlaneArgs],
    grad_y: PlaneArgs,
    weight: TensorArgs,
    bias: TensorArgs | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    bias_of: str = "grad_y",
    add_weight: bool = False,
    add_bias: bool = False,
) -> ConvWeightGradArgs:
    """Arguments of a call that writes ``weight`` (O, C / group, kh, kw) and ``bias``.

    ``x`` is up to four images that follow each other along channels, C in all; ``grad_y`` is
    (1, O, H', W'). Each is float32 or bfloat16; the results are float32 and contiguous, written
    with ``=`` or, with ``add_weight`` and ``add_bias``, with ``+=``. ``bias`` sums ``bias_of``
    ("grad_y" or "x") over pixels. ``pads`` begins with top and left; what follows does not matter,
    nor is the size of ``grad_y`` tied to that of ``x``: what lies outside of x is zero.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    channels = check_sources(_NAME, x, MAX_SOURCES, "grad_y", grad_y)
    kernel = check_results((channels, grad_y.channels), weight, bias, group, bias_of)
    check_steps(strides, dilations)
    pair = ctypes.c_int64 * 2
    arguments = ConvWeightGradArgs(
        grad_y=grad_y,
        weight=weight.data,
        bias=bias.data if bias is not None else None,
        add_weight=add_weight,
        add_bias=add_bias,
        bias_of=BIAS_OF[bias_of if bias is not None else None],
        kernel=pair(*kernel),
        strides=pair(*strides),
        pads=pair(*pads[:2]),
        dilations=pair(*dilations),
        group=group,
    )
    for position, source in enumerate(x):
        arguments.x[position] = source
    return arguments


def check_results(
    channels: tuple[int, int],
    weight: TensorArgs,
    bias: TensorArgs | None,
    group: int,
    bias_of: str,
) -> tuple[int, ...]:
    """Raise an `ArrayError` unless groups and results fit the ``channels`` of x and of grad_y.

    Returns the size of the kernel.
    """
    inputs, outputs = channels
    if group < 1 or inputs % group or outputs % group:
        raise ArrayError(
            f"{_NAME}: group must divide the channels of x and grad_y, {inputs} and {outputs}, "
            f"got {group}."
        )
    kernel = check_result("weight", weight, (outputs, inputs // group), 4)[2:]
    if bias is not None:
        if bias_of not in ("grad_y", "x"):
            raise ArrayError(f"{_NAME}: bias_of must be 'grad_y' or 'x', got {bias_of!r}.")
        check_result("bias", bias, (inputs if bias_of == "x" else outputs,), 1)
    return kernel


def check_steps(strides: Sequence[int], dilations: Sequence[int]) -> None:
    """Raise an `ArrayError` unless all are positive."""
    if min(*strides, *dilations) < 1:
        raise ArrayError(
            f"{_NAME}: strides and dilations must be positive, got {tuple(strides)} and "
            f"{tuple(dilations)}."
        )


def check_result(
    name: str, tensor: TensorArgs, begins: tuple[int, ...], rank: int
) -> tuple[int, ...]:
    """Raise an `ArrayError` unless ``tensor`` is contiguous float32 of this rank and first sizes.

    Returns its shape.
    """
    shape = tuple(tensor.shape[: tensor.rank])
    strides = tuple(tensor.strides[: tensor.rank])
    if len(shape) != rank or shape[: len(begins)] != begins or min(shape) < 1:
        wanted = ", ".join([*map(str, begins), *["..."] * (rank > len(begins))])
        raise ArrayError(f"{_NAME}: {name} must be ({wanted}), got {shape}.")
    contiguous = all(
        size == 1 or stride == prod(shape[axis + 1 :])
        for axis, (size, stride) in enumerate(zip(shape, strides, strict=True))
    )
    if tensor.dtype != F32 or not contiguous:
        raise ArrayError(
            f"{_NAME}: {name} must be contiguous float32, got type {tensor.dtype} with strides "
            f"{strides}."
        )
    return shape
