"""Convolution, also transposed, on CUDA devices: csrc/conv.cuh and the kernels that include it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from math import prod

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_images, check_size, check_sources
from edgeadapt.kernels.cuda.conv_geometry import (
    MAX_PHASES,
    Axis,
    AxisArgs,
    ConvSpec,
    axis,
    padded,
)
from edgeadapt.kernels.cuda.conv_tiles import Family, Tile, choose
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import DTYPES, ImageArgs, TensorArgs

__all__ = ["ConvSpec", "conv"]

MAX_SOURCES = 4
KINDS = {"add0": 0, "add1": 0, "post": 1, "mask": 2}  # `ConvOperand` of csrc/conv.cuh
BYTES = {DTYPES["f32"]: 4, DTYPES["f16"]: 2, DTYPES["bf16"]: 2}
THREADS = 256  # of conv_plain's blocks
TOGETHER = 9  # the bit of `ConvCommon.vectors` that says so of y and all operands
_Pair = ctypes.c_int64 * 2


class CommonArgs(ctypes.Structure):
    """`ConvCommon` of csrc/conv.cuh."""

    _fields_ = (
        ("sources", ImageArgs * MAX_SOURCES),
        ("y", ImageArgs),
        ("operands", ImageArgs * len(KINDS)),
        ("operand_kinds", ctypes.c_int64 * len(KINDS)),
        ("operand_count", ctypes.c_int64),
        ("add_count", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("weights_dtype", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("padded_channels", ctypes.c_int64),
        ("has_slope", ctypes.c_int64),
        ("slope", ctypes.c_int64),
        ("mask_slope", ctypes.c_int64),
        ("vectors", ctypes.c_int64),
    )


class ConvArgs(ctypes.Structure):
    """`ConvArgs` of csrc/conv.cuh."""

    _fields_ = (
        ("common", CommonArgs),
        ("rows", AxisArgs * MAX_PHASES),
        ("columns", AxisArgs * MAX_PHASES),
        ("row_phases", ctypes.c_int64),
        ("column_phases", ctypes.c_int64),
        ("kernel", _Pair),
        ("steps", _Pair),
        ("out_steps", _Pair),
        ("origin", _Pair),
        ("window", _Pair),
        ("tile", _Pair),
        ("parts", ctypes.c_int64),
        ("channel_blocks", ctypes.c_int64),
        ("windows", ctypes.c_int64),
    )


class PlainArgs(ctypes.Structure):
    """`ConvPlainArgs` of csrc/conv_plain.cu."""

    _fields_ = (
        ("common", CommonArgs),
        ("kernel", _Pair),
        ("strides", _Pair),
        ("pads", _Pair),
        ("dilations", _Pair),
        ("transposed", ctypes.c_int64),
    )


def conv(
    spec: ConvSpec,
    x: Sequence[ImageArgs],
    weights: TensorArgs,
    y: ImageArgs,
    *,
    bias: TensorArgs | None = None,
    add0: ImageArgs | None = None,
    add1: ImageArgs | None = None,
    slope: float | None = None,
    post: ImageArgs | None = None,
    mask: ImageArgs | None = None,
    mask_slope: float = 1.0,
    scratch: int = 0,
) -> Work:
    """The launch that writes ``y`` with ``=``; it needs no ``scratch``.

    ``x`` is up to four images that follow each other along channels, ``weights`` what
    `pack_weights` wrote for the same ``spec``, ``bias`` float32. Then, in this order: + bias,
    + add0, + add1, LeakyReLU, + post, times 1 where mask > 0 and ``mask_slope`` elsewhere. Images
    are float32, float16 or bfloat16, each its own, with any strides; y may be the same memory as
    those of its size if strides are the same, but not as ``x``.

    The launch's kernel says which was chosen: conv_f16_*, conv_bf16_*, conv_tf32_* on tensor cores,
    conv_direct_* for float32 and for few channels, conv_plain for windows that no block holds.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    inputs = check_sources("conv", x, MAX_SOURCES, "y", y)
    if inputs % spec.group or y.channels % spec.group:
        raise ArrayError(
            f"conv: group must divide the channels of x and y, {inputs} and {y.channels}, got "
            f"{spec.group}."
        )
    dtype = spec.weights_dtype
    _check_flat("weights", weights, spec.packed_size(inputs, y.channels), dtype)
    if bias is not None:
        _check_flat("bias", bias, y.channels, "f32")
    named = {"add0": add0, "add1": add1, "post": post, "mask": mask}
    operands = {name: image for name, image in named.items() if image is not None}
    check_images("conv", operands, y.channels)
    for name, image in operands.items():
        check_size("conv", name, image, y.height, y.width)
    common = _common(spec, x, weights, y, operands)
    common.bias = bias.data if bias is not None else None
    common.has_slope, common.slope = slope is not None, _bits(slope or 0.0)
    common.mask_slope = _bits(mask_slope)
    return Work((_tiled(spec, common) or _plain(spec, common),))


def _common(
    spec: ConvSpec,
    x: Sequence[ImageArgs],
    weights: TensorArgs,
    y: ImageArgs,
    operands: Mapping[str, ImageArgs],
) -> CommonArgs:
    outputs = y.channels // spec.group
    common = CommonArgs(
        y=y,
        operand_count=len(operands),
        add_count=sum(name in ("add0", "add1") for name in operands),
        weights=weights.data,
        weights_dtype=weights.dtype,
        in_channels=sum(source.channels for source in x) // spec.group,
        out_channels=outputs,
        padded_channels=padded(outputs),
    )
    for i, source in enumerate(x):
        common.sources[i] = source
    for i, (name, image) in enumerate(operands.items()):
        common.operands[i], common.operand_kinds[i] = image, KINDS[name]
    return common


def _tiled(spec: ConvSpec, common: CommonArgs) -> Launch | None:
    """The launch of a kernel that works on tiles, if a block holds one."""
    rows, columns = (axis(spec, i, n) for i, n in enumerate((common.y.height, common.y.width)))
    if max(len(rows.phases), len(columns.phases)) > MAX_PHASES:
        return None
    channels = (common.in_channels, common.out_channels)
    chosen = choose(spec, channels, rows, columns, list(common.sources), common.weights)
    return None if chosen is None else _launch(*chosen, spec, common, rows, columns)


def _launch(
    family: Family, tile: Tile, spec: ConvSpec, common: CommonArgs, rows: Axis, columns: Axis
) -> Launch:
    common.vectors = _vectors(family, spec, common)
    blocks = family.channel_blocks(common.out_channels, tile)
    arguments = ConvArgs(
        common=common,
        row_phases=len(rows.phases),
        column_phases=len(columns.phases),
        kernel=_Pair(*spec.kernel),
        steps=_Pair(rows.step, columns.step),
        out_steps=_Pair(rows.out_step, columns.out_step),
        origin=_Pair(rows.origin, columns.origin),
        window=_Pair(*tile.window),
        tile=_Pair(tile.rows, tile.columns),
        parts=tile.parts,
        channel_blocks=blocks,
        windows=family.windows(tile, rows, columns, common.in_channels),
    )
    for of, phases in ((arguments.rows, rows.phases), (arguments.columns, columns.phases)):
        for i, phase in enumerate(phases):
            of[i] = phase
    down, across = tile.blocks(rows, columns)
    grid = (blocks * spec.group, across, down)
    return Launch(family.kernel, grid, (family.threads(tile), 1, 1), arguments)


def _plain(spec: ConvSpec, common: CommonArgs) -> Launch:
    y = common.y
    arguments = PlainArgs(
        common=common,
        kernel=_Pair(*spec.kernel),
        strides=_Pair(*spec.strides),
        pads=_Pair(*spec.pads[:2]),
        dilations=_Pair(*spec.dilations),
        transposed=spec.transposed,
    )
    blocks = -(-y.channels * y.height * y.width // THREADS)
    return Launch("conv_plain", (blocks, 1, 1), (THREADS, 1, 1), arguments)


def _vectors(family: Family, spec: ConvSpec, common: CommonArgs) -> int:
    """`ConvCommon.vectors`: which images may be accessed in vectors of the kernel's channels."""
    ends = family.channels_at_once
    accessed = [(i, image, family.unit) for i, image in enumerate(common.sources)]
    accessed += [(4, common.y, ends)]
    accessed += [(5 + i, image, ends) for i, image in enumerate(common.operands)]
    found = 0
    for bit, image, count in accessed:
        if not image.data or image.channel_stride != 1:
            continue
        size = BYTES[image.dtype]
        at_once = min(count * size, 16)
        places = [image.row_stride * size, image.pixel_stride * size, image.data]
        if bit >= MAX_SOURCES and spec.group > 1:
            places.append(common.out_channels * size)
        found |= all(place % at_once == 0 for place in places) << bit
    results = [common.y, *list(common.operands)[: common.operand_count]]
    wanted = ((1 << len(results)) - 1) << MAX_SOURCES
    same = {image.dtype for image in results} == {DTYPES[spec.weights_dtype]}
    return found | (found & wanted == wanted and same) << TOGETHER


def _bits(value: float) -> int:
    """Of a float32."""
    return int.from_bytes(struct.pack("<f", value), "little")


def _check_flat(name: str, tensor: TensorArgs, size: int, dtype: str) -> None:
    """Check that ``tensor`` is contiguous and of this type and many elements."""
    shape = tuple(tensor.shape[: tensor.rank])
    strides = tuple(tensor.strides[: tensor.rank])
    packed = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    fits = all(s == p or n == 1 for s, p, n in zip(strides, packed, shape, strict=True))
    if tensor.dtype != DTYPES[dtype] or not fits or prod(shape) != size:
        raise ArrayError(
            f"conv: {name} must be {size} contiguous {dtype}, got shape {shape} with strides "
            f"{strides}, type {tensor.dtype}."
        )
