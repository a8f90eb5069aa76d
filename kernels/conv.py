"""Convolution, also transposed, and the packing of its weights: csrc/conv.cpp, pack_weights.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.checks import check_pixels, check_sources
from edgeadapt.kernels.tensors import DTYPES, F32, PlaneArgs, TensorArgs

MAX_SOURCES = 4
LANES = {"baseline": 4, "avx2": 8, "avx512": 16, "avx512_bf16": 16, "neon": 4, "neon_bf16": 4}
# Algorithm -> the kernels that pack the weights and that convolve.
KERNELS = {"direct": ("pack_weights", "conv"), "winograd": ("winograd_weights", "winograd")}
_Pair = ctypes.c_int64 * 2


class ConvArgs(ctypes.Structure):
    """`ConvArgs` of csrc/conv_plan.h."""

    _fields_ = (
        ("sources", PlaneArgs * MAX_SOURCES),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", PlaneArgs),
        ("add0", PlaneArgs),
        ("add1", PlaneArgs),
        ("post", PlaneArgs),
        ("mask", PlaneArgs),
        ("kernel", _Pair),
        ("strides", _Pair),
        ("pads", _Pair),
        ("dilations", _Pair),
        ("group", ctypes.c_int64),
        ("transposed", ctypes.c_int64),
        ("has_slope", ctypes.c_int64),
        ("slope", ctypes.c_double),
        ("mask_slope", ctypes.c_double),
        ("compute", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
    )


class PackWeightsArgs(ctypes.Structure):
    """`PackWeightsArgs` of csrc/pack_weights.cpp."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("transposed", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("kernel", _Pair),
        ("strides", _Pair),
        ("pads", _Pair),
        ("dilations", _Pair),
        ("compute", ctypes.c_int64),
    )


@dataclass(frozen=True)
class ConvSpec:
    """What kind of convolution it is, the same for its weights' packing and for each call.

    ``pads`` begins with top and left; what follows does not matter, the size of y does. ``compute``
    "bf16" rounds what is multiplied to bfloat16; sums are float32. ``algorithm`` is "direct" or
    "winograd", see `choose_algorithm`.

    Raises:
        ArrayError: if a number is out of range.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, ...] = (0, 0)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1
    transposed: bool = False
    compute: str = "f32"
    algorithm: str = "direct"

    def __post_init__(self) -> None:
        for name in ("kernel", "strides", "dilations"):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise ArrayError(
                    f"conv: {name} must be two positive numbers, got {getattr(self, name)}."
                )
        if len(self.pads) < 2 or self.group < 1:
            raise ArrayError(
                f"conv: pads must begin with top and left and group be positive, got {self.pads} "
                f"and {self.group}."
            )
        if self.compute not in ("f32", "bf16"):
            raise ArrayError(f"conv: compute must be 'f32' or 'bf16', got {self.compute!r}.")
        if self.algorithm not in KERNELS:
            raise ArrayError(
                f"conv: algorithm must be one of {', '.join(KERNELS)}, got {self.algorithm!r}."
            )
        if self.algorithm == "winograd" and not self.winograd_fits():
            raise ArrayError(f"conv: winograd must be float32, 3x3, without strides, got {self}.")

    def winograd_fits(self) -> bool:
        """Whether the algorithm "winograd" can compute it."""
        return (
            tuple(self.kernel) == (3, 3)
            and tuple(self.strides) == tuple(self.dilations) == (1, 1)
            and self.group == 1
            and self.compute == "f32"
        )

    @property
    def kernels(self) -> tuple[str, str]:
        """Names of the kernels that pack the weights and that convolve."""
        return KERNELS[self.algorithm]

    def packed_size(self, inputs: int, outputs: int) -> int:
        """How many float32 the packed weights take that lead from ``inputs`` to ``outputs``."""
        return packed_size(self, inputs // self.group, outputs)


def packed_size(spec: ConvSpec, inputs: int, outputs: int) -> int:
    """How many float32 the packed weights take; ``inputs`` are those of one group."""
    lanes = (inputs + 1) // 2 if spec.compute == "bf16" else inputs
    return lanes * outputs * (36 if spec.algorithm == "winograd" else prod(spec.kernel))


class Vectors(NamedTuple):
    """What a level computes with: floats in a vector, and whether it multiplies bfloat16 itself."""

    lanes: int
    bf16: bool


def choose_algorithm(
    spec: ConvSpec, inputs: int, outputs: int, size: tuple[int, int], vectors: Vectors
) -> ConvSpec:
    """The same convolution by the algorithm that is faster for an output of ``size``.

    One that may round to bfloat16 is computed in float32 where the instruction set has no products
    of bfloat16, and where Winograd's algorithm, which needs float32, takes less time all the same.
    """
    ways = [replace(spec, algorithm="direct", compute=spec.compute if vectors.bf16 else "f32")]
    plain = replace(spec, algorithm="direct", compute="f32")
    if plain.winograd_fits():
        ways.append(replace(plain, algorithm="winograd"))
    return min(ways, key=lambda way: _work(way, inputs, outputs, size, vectors.lanes))


def _work(spec: ConvSpec, inputs: int, outputs: int, size: tuple[int, int], lanes: int) -> float:
    """Multiplications of vectors, and what copying or transforming a channel is worth in them.

    The factors are fitted to the times of some twenty sizes, of 1 to 128 channels, on an AMD Zen 4;
    of these the faster way is picked, or one that takes at most a twentieth more.
    """
    products = inputs * outputs
    if spec.algorithm == "winograd":
        squares = -(-size[0] // 4) * -(-size[1] // (4 * lanes))  # of 4 x 4, in vectors
        return squares * (36 * products + 400 * inputs + 220 * outputs)
    rows = size[0] * -(-size[1] // lanes)
    taps = prod(spec.kernel)
    if spec.compute == "bf16":
        return rows * (taps / 2 * products + 5 * inputs + 13 * outputs)
    return rows * (taps * products + 8 * inputs + 12 * outputs)


def conv(
    spec: ConvSpec,
    x: Sequence[PlaneArgs],
    weights: TensorArgs,
    y: PlaneArgs,
    *,
    bias: TensorArgs | None = None,
    add0: PlaneArgs | None = None,
    add1: PlaneArgs | None = None,
    slope: float | None = None,
    post: PlaneArgs | None = None,
    mask: PlaneArgs | None = None,
    mask_slope: float = 1.0,
) -> ConvArgs:
    """Arguments of a call that writes ``y`` with ``=``.

    ``x`` is up to four images that follow each other along channels, ``weights`` what
    `pack_weights` wrote for the same ``spec``. Then, in this order: + bias, + add0, + add1,
    LeakyReLU, + post, times 1 where mask > 0 and ``mask_slope`` elsewhere. Images are float32 or
    bfloat16, each its own; y may be the same memory as those of its size, but not as ``x``.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    inputs = check_sources("conv", x, MAX_SOURCES, "y", y)
    if inputs % spec.group or y.channels % spec.group:
        raise ArrayError(
            f"conv: group must divide the channels of x and y, {inputs} and {y.channels}, got "
            f"{spec.group}."
        )
    _check_flat("weights", weights, spec.packed_size(inputs, y.channels))
    if bias is not None:
        _check_flat("bias", bias, y.channels)
    operands = {"add0": add0, "add1": add1, "post": post, "mask": mask}
    for name, image in operands.items():
        if image is not None:
            check_pixels("conv", name, image)
            _check_size(name, image, y)
    arguments = ConvArgs(
        weights=weights.data,
        bias=bias.data if bias is not None else None,
        y=y,
        **{name: image for name, image in operands.items() if image is not None},
        **_geometry(spec),
        has_slope=slope is not None,
        slope=slope or 0.0,
        mask_slope=mask_slope,
    )
    for position, source in enumerate(x):
        arguments.sources[position] = source
    return arguments


def pack_weights(
    spec: ConvSpec,
    weight: TensorArgs,
    y: TensorArgs,
    out_channels: tuple[int, int] | None = None,
) -> PackWeightsArgs:
    """Arguments of a call that writes ``y``, `ConvSpec.packed_size` float32.

    ``weight`` is (O, C / group, kh, kw), transposed (C, O / group, kh, kw); ``out_channels`` is the
    first and the count of those wanted of O, all of them if there are groups.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    shape = tuple(weight.shape[: weight.rank])
    if len(shape) != 4 or shape[2:] != tuple(spec.kernel) or shape[0] % spec.group:
        raise ArrayError(
            f"pack_weights: weight must be a multiple of {spec.group} by some channels by "
            f"{spec.kernel}, got {shape}."
        )
    _check_flat("weight", weight, prod(shape))
    inputs = shape[0] // spec.group if spec.transposed else shape[1]
    outputs = shape[1] if spec.transposed else shape[0] // spec.group
    first, count = out_channels or (0, outputs * spec.group)
    some = count != outputs * spec.group
    if first < 0 or count < 1 or first + count > outputs * spec.group or (some and spec.group > 1):
        raise ArrayError(
            f"pack_weights: out_channels must lie within {outputs * spec.group}, and be all of "
            f"them if there are groups, got {(first, count)}."
        )
    _check_flat("y", y, packed_size(spec, inputs, count))
    return PackWeightsArgs(
        weight=weight.data,
        y=y.data,
        in_channels=inputs,
        out_channels=outputs,
        first=first,
        count=count,
        **_geometry(spec),
    )


def _geometry(spec: ConvSpec) -> dict[str, object]:
    """The fields that both structures have."""
    return {
        "kernel": _Pair(*spec.kernel),
        "strides": _Pair(*spec.strides),
        "pads": _Pair(*spec.pads[:2]),
        "dilations": _Pair(*spec.dilations),
        "group": spec.group,
        "transposed": spec.transposed,
        "compute": DTYPES[spec.compute],
    }


def _check_size(name: str, image: PlaneArgs, y: PlaneArgs) -> None:
    got = (image.channels, image.height, image.width)
    wanted = (y.channels, y.height, y.width)
    if got != wanted:
        raise ArrayError(f"conv: {name} must have y's size {wanted}, got {got}.")


def _check_flat(name: str, tensor: TensorArgs, size: int) -> None:
    """Check that ``tensor`` is contiguous float32 of this many elements."""
    shape = tuple(tensor.shape[: tensor.rank])
    strides = tuple(tensor.strides[: tensor.rank])
    packed = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    fits = all(s == p or n == 1 for s, p, n in zip(strides, packed, shape, strict=True))
    if tensor.dtype != F32 or not fits or prod(shape) != size:
        raise ArrayError(
            f"conv: {name} must be {size} contiguous float32, got shape {shape} with strides "
            f"{strides}, type {tensor.dtype}."
        )
