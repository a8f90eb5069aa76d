"""A convolution of a plan as cuDNN is told of it: what it is, apart from addresses.

cuDNN's order of weights is "krsc" of `edgeadapt.kernels.cuda.pack_weights`: (K, C, r, s) with C
fastest. A plan's transposed convolution is the gradient of one in its input, of K channels at its
input and C at its output, so that for both the packed weight is cuDNN's filter as it lies. A weight
gradient is written in that order as well, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from edgeadapt.runtime.cuda.pack import LIBRARY_ALIGNMENT
from edgeadapt.runtime.plan.bind import sources
from edgeadapt.runtime.plan.ir import BYTES, Dtype, Op, Program, Shape

Pass = Literal["fprop", "dgrad", "wgrad"]
OPERANDS = ("add0", "add1", "post", "mask")  # in the order in which they follow the sums
UIDS: Mapping[str, int] = {
    role: number for number, role in enumerate(("x", "weight", "bias", *OPERANDS, "y", "grad_y"), 1)
}
_IN_16_BYTES: Mapping[Dtype, int] = {"f32": 4, "f16": 8, "bf16": 8}
_MOST_ELEMENTS = 2**31
_WORDS = {
    "x0": "its input",
    "grad_y": "the gradient it reads",
    "y": "its result",
    "add0": "a summand",
    "add1": "a summand",
    "post": "a summand",
    "mask": "its mask",
}


@dataclass(frozen=True)
class Layout:
    """An image (1, C, H, W) and how far its elements lie apart."""

    shape: Shape
    strides: Shape
    dtype: Dtype


@dataclass(frozen=True)
class Convolution:
    """All that a choice of an engine depends on; two operations may have the same.

    ``pads`` is what cuDNN wants before and after rows and columns: (top, left), (bottom, right).
    """

    kind: Pass
    compute: str  # "f32", "tf32", "f16" or "bf16"
    filter: Shape  # (K, C, r, s)
    pads: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    images: tuple[tuple[str, Layout], ...]  # role -> layout: x, y or grad_y, and operands
    bias: bool = False
    slope: float | None = None
    mask_slope: float | None = None
    # Of a weight gradient: the image whose pixels are summed besides, which cuDNN does not do.
    bias_of: str = ""

    def image(self, role: str) -> Layout:
        """Layout of an image that there is."""
        return dict(self.images)[role]

    @property
    def result(self) -> str:
        """Role of what is written."""
        return "weight" if self.kind == "wgrad" else "y"

    @property
    def weights_dtype(self) -> Dtype:
        """Of packed weights, or of their gradient."""
        return "f32" if self.kind == "wgrad" else self.image("x").dtype

    @property
    def roles(self) -> tuple[str, ...]:
        """Of all tensors that there are, in the order of their numbers."""
        there = {"weight", *dict(self.images)} | ({"bias"} if self.bias else set())
        return tuple(role for role in UIDS if role in there)

    @property
    def key(self) -> str:
        """The same for the same convolution, on every machine."""
        return repr(self)

    @property
    def products(self) -> int:
        """How many pairs are multiplied, at the most."""
        small = self.image({"fprop": "y", "dgrad": "x", "wgrad": "grad_y"}[self.kind])
        return prod(self.filter) * prod(small.shape[2:])

    def span_bytes(self, role: str) -> int:
        """From the first to the last byte of a tensor."""
        if role == "bias":
            return 4 * self.image("y").shape[1]
        if role == "weight":
            return prod(self.filter) * BYTES[self.weights_dtype]
        image = self.image(role)
        last = sum((n - 1) * s for n, s in zip(image.shape, image.strides, strict=True))
        return (last + 1) * BYTES[image.dtype]


def convolution(op: Op, program: Program) -> Convolution | None:
    """What cuDNN may be asked to compute; None if it is not asked."""
    found = asked(op, program)
    return found if isinstance(found, Convolution) else None


def asked(op: Op, program: Program) -> Convolution | str:
    """What cuDNN may be asked to compute, or why it is not: a few words."""
    if op.kind not in ("conv", "conv_weight_grad"):
        return "no convolution"
    at = op.attributes
    if at["group"] != 1:
        return f"{at['group']} groups"
    if len(sources(op)) != 1:
        return f"it reads {len(sources(op))} images as one"
    if at.get("scale", 1) != 1:
        return "its sums are scaled"
    names = {"x": op.inputs["x0"]}
    if op.kind == "conv":
        names |= {"y": op.outputs["y"]}
        names |= {role: op.inputs[role] for role in OPERANDS if role in op.inputs}
    else:
        names |= {"grad_y": op.inputs["grad_y"]}
    compute = at.get("compute", "f32")
    why = _unreadable(op, program, names) or _mistyped(program, names, compute)
    return why or _asked(op, program, names, compute)


def _asked(op: Op, program: Program, names: Mapping[str, str], compute: str) -> Convolution | str:
    """The same for an operation on images that cuDNN can read."""
    at = op.attributes
    images = {role: _layout(program, name) for role, name in names.items()}
    x, y = images["x"], images["y" if op.kind == "conv" else "grad_y"]
    transposed = bool(at.get("transposed"))
    large, small = (y, x) if transposed else (x, y)
    after = _pads_after(at, large.shape[2:], small.shape[2:])
    if min(at["pads"][:2]) < 0:
        return "negative pads"
    if after is None:
        return "it leaves rows or columns out"
    kind: Pass = "dgrad" if transposed else "fprop"
    slope, mask_slope, bias_of = at.get("slope"), None, ""
    if op.kind == "conv_weight_grad":
        kind, bias_of = "wgrad", (at["bias_of"] or "grad_y") if "bias" in op.outputs else ""
    elif "mask" in op.inputs:
        mask_slope = at["mask_slope"]
    return Convolution(
        kind,
        compute,
        (small.shape[1], large.shape[1], *at["kernel"]),
        (tuple(at["pads"][:2]), after),
        tuple(at["strides"]),
        tuple(at["dilations"]),
        tuple(images.items()),
        op.kind == "conv" and "bias" in op.inputs,
        slope,
        mask_slope,
        bias_of,
    )


def _layout(program: Program, name: str) -> Layout:
    tensor = program.tensors[name]
    rows, strides = tensor.shape[2], tensor.strides
    # The distance of images, of which there is one, is made up: cuDNN orders axes by it.
    return Layout(tensor.shape, (rows * strides[2], *strides[1:]), tensor.dtype)


def _mistyped(program: Program, names: Mapping[str, str], compute: str) -> str:
    """What is of another type than is multiplied; "" if nothing is."""
    wanted = {"tf32": "f32"}.get(compute, compute)
    for role in ("x", "grad_y"):
        found = program.tensors[names[role]].dtype if role in names else wanted
        if found != wanted:
            return f"{_WORDS.get(role, 'its input')} is {found}, its products are {wanted}"
    return ""


def _unreadable(op: Op, program: Program, names: Mapping[str, str]) -> str:
    """What does not lie pixel by pixel, in whole 16 bytes; "" if all does."""
    for role, name in names.items():
        tensor, word = program.tensors[name], _WORDS["x0" if role == "x" else role]
        if tensor.dtype not in _IN_16_BYTES or tensor.storage == "constant":
            return f"{word} is {tensor.dtype}, a {tensor.storage}"
        unit = _IN_16_BYTES[tensor.dtype]
        _, channels, rows, columns = tensor.shape
        _, step, row, pixel = tensor.strides
        if step != 1 or pixel < channels or row < pixel * columns:
            return f"{word} is not channels last"
        if any(n % unit for n in (channels, pixel, row)):
            return f"{word} has {channels} channels, {unit} are 16 bytes"
        first = tensor.view.offset if tensor.view else tensor.offset
        if not _aligned(first * BYTES[tensor.dtype]):
            return f"{word} begins between 16 bytes"
        if prod((rows, row)) >= _MOST_ELEMENTS:
            return f"{word} has 2^31 elements or more"
    bias = op.inputs.get("bias")
    if bias is not None and program.tensors[bias].storage != "weights":  # those are copied
        view = program.tensors[bias].view
        if view is not None and not _aligned(4 * view.offset):
            return "its bias begins between 16 bytes"
    return ""


def _aligned(nbytes: int) -> bool:
    return nbytes % LIBRARY_ALIGNMENT == 0


def _pads_after(at: Mapping[str, Any], large: Shape, small: Shape) -> tuple[int, int] | None:
    """Pads at the end with which a convolution leads from ``large`` to ``small``.

    What it leaves over there, less than a stride, is nobody's; pads must not be negative.
    """
    found = []
    for axis in (0, 1):
        stride, reach = at["strides"][axis], (at["kernel"][axis] - 1) * at["dilations"][axis] + 1
        least = (small[axis] - 1) * stride + reach - large[axis] - at["pads"][axis]
        if least + stride - 1 < 0:
            return None
        found.append(max(least, 0))
    return found[0], found[1]
