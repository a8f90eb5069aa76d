"""The gradient of a convolution in its weight and bias: csrc/conv_weight_grad.cu, .._mma.cu.

The last launch also takes what another library has multiplied, in that library's order."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_pixels, check_sources
from edgeadapt.kernels.conv_weight_grad import check_result, check_results, check_steps
from edgeadapt.kernels.cuda.conv_weight_grad_plan import (
    MAX_SOURCES,
    SUM_THREADS,
    THREADS,
    UNIT,
    Plan,
    Problem,
    kernel_for,
    plan,
)
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs

_NAME = "conv_weight_grad"
_ALIGNMENT = 256  # of scratch memory
_Pair = ctypes.c_int64 * 2


class ConvWeightGradArgs(ctypes.Structure):
    """`ConvWeightGradArgs` of csrc/conv_weight_grad.cuh."""

    _fields_ = (
        ("x", ImageArgs * MAX_SOURCES),
        ("grad_y", ImageArgs),
        ("weight_parts", ctypes.c_void_p),
        ("bias_parts", ctypes.c_void_p),
        ("bias_of_x", ctypes.c_int64),
        ("sources", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        *((name, _Pair) for name in ("kernel", "strides", "pads", "dilations", "taps")),
        ("block_out", ctypes.c_int64),
        ("block_in", ctypes.c_int64),
        ("blocks_out", ctypes.c_int64),
        ("blocks_in", ctypes.c_int64),
        ("tile_rows", ctypes.c_int64),
        *((name, _Pair) for name in ("window", "pixel_steps", "word_steps", "tap_steps", "tiles")),
        ("chunks", ctypes.c_int64),
    )


class ChannelSumsArgs(ctypes.Structure):
    """`ChannelSumsArgs` of csrc/conv_weight_grad.cu."""

    _fields_ = (
        ("x", ImageArgs * MAX_SOURCES),
        ("parts", ctypes.c_void_p),
        ("sources", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("chunks", ctypes.c_int64),
    )


class PartSumsArgs(ctypes.Structure):
    """`PartSumsArgs` of csrc/conv_weight_grad.cu."""

    _fields_ = (
        ("weight_parts", ctypes.c_void_p),
        ("bias_parts", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("weights", ctypes.c_int64),
        ("biases", ctypes.c_int64),
        ("weight_chunks", ctypes.c_int64),
        ("bias_chunks", ctypes.c_int64),
        ("add_weight", ctypes.c_int64),
        ("add_bias", ctypes.c_int64),
        ("taps", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )


def conv_weight_grad(
    x: Sequence[ImageArgs],
    grad_y: ImageArgs,
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
    compute: str = "f32",
    most_chunks: int | None = None,
    scratch: int = 0,
) -> Work:
    """What writes ``weight`` (O, C / group, kh, kw) and ``bias``.

    ``x`` is up to four images that follow each other along channels, C in all; ``grad_y`` is
    (1, O, H', W'). Each is float32, float16 or bfloat16 of any strides; the results are float32 and
    contiguous, written with ``=`` or, with ``add_weight`` and ``add_bias``, with ``+=``. ``bias``
    sums ``bias_of`` ("grad_y" or "x") over pixels. ``pads`` begins with top and left; what follows
    does not matter, nor is the size of ``grad_y`` tied to that of ``x``: outside of x is zero.

    Sums are float32. Products are exact with ``compute`` "f32", which for inputs of one type of 16
    bits runs on tensor cores all the same; "tf32", "f16" and "bf16" may round what is multiplied to
    that type. ``most_chunks`` bounds into how many the image is cut, which is else chosen by size.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    channels = check_sources(_NAME, x, MAX_SOURCES, "grad_y", grad_y)
    kernel = check_results((channels, grad_y.channels), weight, bias, group, bias_of)
    check_steps(strides, dilations)
    if compute not in ("f32", "tf32", "f16", "bf16"):
        raise ArrayError(
            f"{_NAME}: compute must be 'f32', 'tf32', 'f16' or 'bf16', got {compute!r}."
        )
    problem = Problem(
        inputs=channels // group,
        outputs=grad_y.channels // group,
        group=group,
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        pads=(pads[0], pads[1]),
        dilations=(dilations[0], dilations[1]),
        x_size=(x[0].height, x[0].width),
        grad_size=(grad_y.height, grad_y.width),
        dtypes=tuple(image.dtype for image in (*x, grad_y)),
    )
    results = PartSumsArgs(
        weight=weight.data,
        bias=bias.data if bias is not None else None,
        weights=prod(weight.shape[:4]),
        biases=bias.shape[0] if bias is not None else 0,
        add_weight=add_weight,
        add_bias=add_bias,
    )
    chosen = plan(problem, kernel_for(problem, compute), most_chunks)
    return _work(x, grad_y, problem, chosen, results, bias_of == "x", scratch)


def _work(
    x: Sequence[ImageArgs],
    grad_y: ImageArgs,
    problem: Problem,
    plan: Plan,
    results: PartSumsArgs,
    bias_of_x: bool,
    scratch: int,
) -> Work:
    """Partial sums of weights and, if it can be in the same pass, of the bias; then their sums."""
    sources = (ImageArgs * MAX_SOURCES)(*x)
    apart = results.biases > 0 and bias_of_x and not plan.meets_all_of_x
    results.weight_chunks, results.bias_chunks = plan.chunks, plan.chunks
    if apart:
        results.bias_chunks = _bias_chunks(x[0])
    weight_bytes = _aligned(4 * results.weights * results.weight_chunks)
    results.weight_parts = scratch
    results.bias_parts = scratch + weight_bytes if results.biases else None
    arguments = ConvWeightGradArgs(
        x=sources,
        grad_y=grad_y,
        weight_parts=results.weight_parts,
        bias_parts=None if apart else results.bias_parts,
        bias_of_x=bias_of_x,
        sources=len(x),
        **{name: getattr(problem, name) for name in ("group", "outputs", "inputs")},
        **{
            name: _Pair(*getattr(problem, name))
            for name in ("kernel", "strides", "pads", "dilations")
        },
        block_out=plan.block[0],
        block_in=plan.block[1],
        blocks_out=plan.blocks[0],
        blocks_in=plan.blocks[1],
        tile_rows=plan.tile_rows,
        **{
            name: _Pair(*getattr(plan, name))
            for name in ("taps", "window", "pixel_steps", "word_steps", "tap_steps", "tiles")
        },
        chunks=plan.chunks,
    )
    grid = (plan.rectangles * problem.group * prod(plan.blocks), plan.chunks, 1)
    launches = [Launch(plan.kernel, grid, (THREADS, 1, 1), arguments)]
    if apart:
        launches.append(_channel_sums(x, results))
    launches.append(_sum(results))
    return Work(tuple(launches), weight_bytes + _aligned(4 * results.biases * results.bias_chunks))


def from_channels_last(
    products: int,
    weight: TensorArgs,
    bias: TensorArgs | None = None,
    of: ImageArgs | None = None,
    *,
    add_weight: bool = False,
    add_bias: bool = False,
    scratch: int = 0,
) -> Work:
    """What writes ``weight`` (O, C, kh, kw) and ``bias`` where a library has multiplied.

    At ``products`` lie the sums, float32 (O, kh, kw, C) without gaps. ``bias`` sums the image
    ``of`` over pixels. Results are as those of `conv_weight_grad`.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    outputs, inputs, *kernel = check_result("weight", weight, (), 4)
    results = PartSumsArgs(
        weight_parts=products,
        weight=weight.data,
        weights=outputs * inputs * prod(kernel),
        weight_chunks=1,
        add_weight=add_weight,
        add_bias=add_bias,
        taps=prod(kernel),
        inputs=inputs,
    )
    launches = []
    if bias is not None and of is not None:
        check_pixels(_NAME, "of", of)
        check_result("bias", bias, (of.channels,), 1)
        results.bias, results.bias_parts, results.biases = bias.data, scratch, of.channels
        results.bias_chunks = _bias_chunks(of)
        launches.append(_channel_sums([of], results))
    launches.append(_sum(results))
    return Work(tuple(launches), _aligned(4 * results.biases * results.bias_chunks))


def _bias_chunks(image: ImageArgs) -> int:
    return int(min(64, -(-image.height * image.width // 1024)))


def _channel_sums(images: Sequence[ImageArgs], results: PartSumsArgs) -> Launch:
    """What sums images over chunks of their pixels."""
    channels = ChannelSumsArgs(
        (ImageArgs * MAX_SOURCES)(*images),
        results.bias_parts,
        len(images),
        results.biases,
        results.bias_chunks,
    )
    grid = (-(-results.biases // UNIT), results.bias_chunks, 1)
    return Launch("conv_weight_grad_channels", grid, (THREADS, 1, 1), channels)


def _sum(results: PartSumsArgs) -> Launch:
    """What adds up the chunks."""
    blocks = -(-results.weights // SUM_THREADS) + -(-results.biases // SUM_THREADS)
    return Launch("conv_weight_grad_sum", (blocks, 1, 1), (THREADS, 1, 1), results)


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT
