"""ONNX local functions for the operators of a backward pass that ONNX does not have.

Each is one node with a meaning in the domain "edgeadapt"; its body, made of standard operators,
lets any ONNX runtime run the file. The node's attributes say everything; the body is specific to
them, which is why the name carries them too. docs/operators.md lists the functions. All of them
take images one at a time: N is 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

DOMAIN = "edgeadapt"
OPSET = 18
FloatArray = npt.NDArray[np.floating[Any]]
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ConvSpec:
    """The attributes of a 2-D convolution, ONNX's names; padding is the same on both sides of an
    axis.
    """

    kernel_shape: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    group: int

    def attributes(self) -> dict[str, int | list[int]]:
        """As ONNX attributes; pads are begin, begin, end, end."""
        return {
            "kernel_shape": list(self.kernel_shape),
            "strides": list(self.strides),
            "pads": [*self.pads, *self.pads],
            "dilations": list(self.dilations),
            "group": self.group,
        }

    def suffix(self) -> str:
        """A name for this combination, such as k3x3_s1x1_p1x1."""
        parts = [("k", self.kernel_shape), ("s", self.strides), ("p", self.pads)]
        if self.dilations != (1, 1):
            parts.append(("d", self.dilations))
        text = "_".join(f"{letter}{a}x{b}" for letter, (a, b) in parts)
        return text if self.group == 1 else f"{text}_g{self.group}"


@dataclass
class _Body:
    """Collects the nodes of one function."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def ints(self, *values: int) -> str:
        # Not value_ints: ONNX Runtime 1.23, the last one for Python 3.10, cannot read pads from it.
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(values, np.int64)))

    def array(self, value: FloatArray) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def function(self, name: str, inputs: list[str], attributes: list[str]) -> onnx.FunctionProto:
        opset = helper.make_opsetid("", OPSET)
        return helper.make_function(DOMAIN, name, inputs, ["y"], self.nodes, [opset], attributes)


def conv_weight_grad(spec: ConvSpec) -> onnx.FunctionProto:
    """ConvWeightGrad(x (1, Ci, H, W), grad_y (1, Co, OH, OW)) -> (Co, Ci / group, kh, kw)."""
    body = _Body()
    by_group = _shifted_product(body, spec) if spec.strides == (1, 1) else _tap_product(body, spec)
    kh, kw = spec.kernel_shape
    merged = body.op("Reshape", by_group, body.ints(0, -1, kh * kw))  # (Ci / group, Co, taps)
    ordered = body.op("Transpose", merged, perm=[1, 0, 2])
    body.op("Reshape", ordered, body.ints(0, 0, kh, kw), out="y")
    return body.function(
        f"ConvWeightGrad_{spec.suffix()}", ["x", "grad_y"], list(spec.attributes())
    )


def _shifted_product(body: _Body, spec: ConvSpec) -> str:
    """All taps in one matrix product: x shifted sideways against grad_y shifted up and down.

    A third of the copies that one shift of x for each tap would take, and a product that is nearer
    to square. (Ci / group, group, Co / group, kh, kw).
    """
    (kh, kw), (ph, pw) = spec.kernel_shape, spec.pads
    row, column = spec.dilations
    sideways = [(pw - i * column, pw - (kw - 1 - i) * column) for i in range(kw)]
    vertical = [(i * row - ph, (kh - 1 - i) * row - ph) for i in range(kh)]
    columns = _shifts(body, "x", 3, sideways, spec.group)  # (group, kw * Ci / group, H * OW)
    rows = _shifts(body, "grad_y", 2, vertical, spec.group)  # (group, kh * Co / group, H * OW)
    product = body.op("MatMul", columns, body.op("Transpose", rows, perm=[0, 2, 1]))
    split = body.op("Reshape", body.op("Unsqueeze", product, body.ints(1)), body.ints(0, kw, -1, 0))
    turned = body.op("Transpose", split, perm=[0, 3, 1, 2])  # (group, kh * Co, kw, Ci)
    again = body.op(
        "Reshape", body.op("Unsqueeze", turned, body.ints(1)), body.ints(0, kh, -1, 0, 0)
    )
    return body.op("Transpose", again, perm=[4, 0, 2, 1, 3])


def _shifts(body: _Body, value: str, axis: int, pads: Sequence[tuple[int, int]], group: int) -> str:
    """``value`` padded along ``axis`` in several ways (a negative pad cuts), one below another."""
    shifted = []
    for begin, end in pads:
        amounts = [0] * 8
        amounts[axis], amounts[axis + 4] = begin, end
        moved = body.op("Pad", value, body.ints(*amounts)) if begin or end else value
        shifted.append(_flat_groups(body, moved, group))
    return shifted[0] if len(shifted) == 1 else body.op("Concat", *shifted, axis=1)


def _tap_product(body: _Body, spec: ConvSpec) -> str:
    """One matrix product for each row of the kernel, over the row's strided slices of x.

    (Ci / group, group, Co / group, taps).
    """
    (kh, kw), (ph, pw), group = spec.kernel_shape, spec.pads, spec.group
    padded = body.op("Pad", "x", body.ints(0, 0, ph, pw, 0, 0, ph, pw)) if ph or pw else "x"
    flat = _flat_groups(body, "grad_y", group)
    grad = body.op("Transpose", flat, perm=[0, 2, 1])  # (group, P, Co / group)
    rows = []
    for row in range(kh):
        taps = [_tap(body, padded, spec, row, column) for column in range(kw)]
        flats = [_flat_groups(body, tap, group) for tap in taps]
        joined = flats[0] if kw == 1 else body.op("Concat", *flats, axis=1)
        rows.append(body.op("MatMul", joined, grad))  # (group, kw * Ci / group, Co / group)
    product = rows[0] if kh == 1 else body.op("Concat", *rows, axis=1)
    alone = body.op("Unsqueeze", product, body.ints(1))
    taps_first = body.op("Reshape", alone, body.ints(0, kh * kw, -1, 0))
    return body.op("Transpose", taps_first, perm=[2, 0, 3, 1])


def conv_input_grad(spec: ConvSpec) -> onnx.FunctionProto:
    """ConvInputGrad(grad_y (1, Co, OH, OW), weight (Co, Ci / group, kh, kw)[, x_shape int64 (4)])
    -> (1, Ci, H, W).

    ``x_shape`` is there when a stride is above 1: then several input sizes give the same output
    size."""
    body = _Body()
    if spec.strides != (1, 1):
        body.op("Identity", _spread(body, spec, "grad_y", "weight"), out="y")
        inputs = ["grad_y", "weight", "x_shape"]
    else:
        inputs = ["grad_y", "weight"]
        reaches = zip(spec.kernel_shape, spec.dilations, spec.pads, strict=True)
        # ONNX Runtime opens no graph with a Conv whose pads are negative.
        padded = all(pad <= dilation * (kernel - 1) for kernel, dilation, pad in reaches)
        if spec.group == 1 and padded:
            _flipped_conv(body, spec)
        else:
            attributes = {
                "pads": [*spec.pads, *spec.pads],
                "dilations": spec.dilations,
                "group": spec.group,
            }
            body.op("ConvTranspose", "grad_y", "weight", out="y", **attributes)
    return body.function(f"ConvInputGrad_{spec.suffix()}", inputs, list(spec.attributes()))


def leaky_relu_grad() -> onnx.FunctionProto:
    """LeakyReluGrad(grad_y, x; alpha) -> grad_y where x > 0, elsewhere alpha * grad_y."""
    body = _Body()
    alpha = helper.make_node("Constant", [], ["alpha"])
    alpha.attribute.append(
        onnx.AttributeProto(
            name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha"
        )
    )
    body.nodes.append(alpha)
    positive = body.op("Greater", "x", body.op("Constant", value_float=0.0))
    body.op("Where", positive, "grad_y", body.op("Mul", "grad_y", "alpha"), out="y")
    return body.function("LeakyReluGrad", ["grad_y", "x"], ["alpha"])


def resize_grad(scale: int, mode: str) -> onnx.FunctionProto:
    """ResizeGrad(grad_y (1, C, scale * H, scale * W); scale, mode) -> (1, C, H, W).

    The adjoint of Resize with half-pixel centres. "linear": a strided convolution with the hat
    function gives the gradient of the input continued by one pixel on every side; those pixels
    repeat the edge, so they are added to it."""
    body = _Body()
    if mode == "nearest":
        mean = body.op("AveragePool", "grad_y", kernel_shape=[scale, scale], strides=[scale, scale])
        body.op("Mul", mean, body.op("Constant", value_float=float(scale * scale)), out="y")
    else:
        reach, taps = scale // 2, _hat(scale)
        end = len(taps) - reach
        alone = body.op(
            "Reshape", "grad_y", body.ints(-1, 1, 0, 0)
        )  # channels as images: one filter for all of them
        kernel = body.array(np.outer(taps, taps).astype(np.float32)[None, None])
        pads = [scale + reach] * 2 + [end] * 2
        wide = body.op("Conv", alone, kernel, strides=[scale, scale], pads=pads)
        folded = _fold_edges(body, _fold_edges(body, wide, 2), 3)
        body.op("Transpose", folded, perm=[1, 0, 2, 3], out="y")
    return body.function(f"ResizeGrad_{mode}_x{scale}", ["grad_y"], ["scale", "mode"])


def average_pool_grad(spec: ConvSpec) -> onnx.FunctionProto:
    """AveragePoolGrad(grad_y (1, C, OH, OW), x_shape int64 (4)) -> (1, C, H, W); padding counts as
    zeros.
    """
    body = _Body()
    area = spec.kernel_shape[0] * spec.kernel_shape[1]
    alone = body.op("Reshape", "grad_y", body.ints(-1, 1, 0, 0))
    weight = body.array(np.full((1, 1, *spec.kernel_shape), 1 / area, np.float32))
    body.op("Transpose", _spread(body, spec, alone, weight), perm=[1, 0, 2, 3], out="y")
    return body.function(
        f"AveragePoolGrad_{spec.suffix()}", ["grad_y", "x_shape"], list(spec.attributes())
    )


def pad_grad(mode: str, pads: Sequence[int]) -> onnx.FunctionProto:
    """PadGrad(grad_y; mode, pads) -> gradient of a 2-D padding, "reflect" or "edge".

    ``pads`` is PyTorch's (left, right, top, bottom), none negative. What was copied into the border
    is added to where it came from.
    """
    body, value = _Body(), "grad_y"
    for axis, (begin, end) in ((3, pads[0:2]), (2, pads[2:4])):
        value = _add_border(body, value, axis, begin, end, mode)
    body.op("Identity", value, out="y")
    name = "_".join(str(pad) for pad in pads)
    return body.function(f"PadGrad_{mode}_{name}", ["grad_y"], ["mode", "pads"])


def max_pool_grad(spec: ConvSpec, ceil_mode: bool) -> onnx.FunctionProto:
    """MaxPoolGrad(grad_y, x) -> grad_y where x was the largest of its window, 0 elsewhere."""
    body = _Body()
    attributes: dict[str, Any] = {"ceil_mode": int(ceil_mode), **spec.attributes()}
    del attributes["group"]
    body.nodes.append(helper.make_node("MaxPool", ["x"], ["largest", "where"], **attributes))
    size, minus = body.op("Size", "x"), body.ints(-1)
    zeros = body.op("Expand", body.op("Constant", value_float=0.0), body.op("Reshape", size, minus))
    places, values = body.op("Reshape", "where", minus), body.op("Reshape", "grad_y", minus)
    flat = body.op("ScatterElements", zeros, places, values, axis=0, reduction="add")
    body.op("Reshape", flat, body.op("Shape", "x"), out="y")
    names = [*spec.attributes(), "ceil_mode"]
    return body.function(f"MaxPoolGrad_{spec.suffix()}_{int(ceil_mode)}", ["grad_y", "x"], names)


def _add_border(body: _Body, value: str, axis: int, begin: int, end: int, mode: str) -> str:
    where = body.ints(axis)
    result = core = body.op("Slice", value, body.ints(begin), body.ints(-end or _END), where)
    size = body.op("Shape", core, start=axis, end=axis + 1)
    for count, first in ((begin, True), (end, False)):
        if not count:
            continue
        bounds = (0, count) if first else (-count, _END)
        band = body.op("Slice", value, body.ints(bounds[0]), body.ints(bounds[1]), where)
        skip = 0 if mode == "edge" else 1  # reflection leaves the edge itself out
        if mode == "edge":
            band, length = body.op("ReduceSum", band, where, keepdims=1), 1
        else:
            backwards = body.ints(-1), body.ints(-_END), where, body.ints(-1)
            band, length = body.op("Slice", band, *backwards), count
        near, rest = body.ints(skip), body.op("Sub", size, body.ints(length + skip))
        pads = (near, rest) if first else (rest, near)
        placed = body.op("Pad", band, body.op("Concat", *pads, axis=0), "", where)
        result = body.op("Add", result, placed)
    return result


def _flat_groups(body: _Body, value: str, group: int) -> str:
    """(1, C, OH, OW) -> (group, C / group, OH * OW); in Reshape, 0 copies a size."""
    split = value if group == 1 else body.op("Reshape", value, body.ints(group, -1, 0, 0))
    return body.op("Reshape", split, body.ints(0, 0, -1))


def _tap(body: _Body, padded: str, spec: ConvSpec, row: int, column: int) -> str:
    """The pixels of x that meet weight[:, :, row, column]; constant bounds serve every size."""
    starts, ends = [], []
    for position, kernel, dilation in zip(
        (row, column), spec.kernel_shape, spec.dilations, strict=True
    ):
        starts.append(position * dilation)
        left = (kernel - 1 - position) * dilation
        ends.append(-left if left else _END)
    return body.op(
        "Slice",
        padded,
        body.ints(*starts),
        body.ints(*ends),
        body.ints(2, 3),
        body.ints(*spec.strides),
    )


def _flipped_conv(body: _Body, spec: ConvSpec) -> None:
    # Several times faster than ConvTranspose on ONNX Runtime's CPU provider, and the same numbers.
    weight = "weight"
    if spec.kernel_shape != (1, 1):
        bounds = body.ints(-1, -1), body.ints(-_END, -_END), body.ints(2, 3), body.ints(-1, -1)
        weight = body.op("Slice", weight, *bounds)
    swapped = body.op("Transpose", weight, perm=[1, 0, 2, 3])
    sizes = zip(spec.kernel_shape, spec.dilations, spec.pads, strict=True)
    pads = [dilation * (kernel - 1) - pad for kernel, dilation, pad in sizes]
    body.op("Conv", "grad_y", swapped, pads=pads * 2, dilations=spec.dilations, out="y")


def _spread(body: _Body, spec: ConvSpec, grad_y: str, weight: str) -> str:
    """ConvTranspose to the largest input that gives this output size, then cut to the one there
    was.
    """
    wide = body.op(
        "ConvTranspose",
        grad_y,
        weight,
        strides=spec.strides,
        pads=[*spec.pads, *spec.pads],
        dilations=spec.dilations,
        group=spec.group,
        output_padding=[stride - 1 for stride in spec.strides],
    )
    size = body.op("Slice", "x_shape", body.ints(2), body.ints(4))
    return body.op("Slice", wide, body.ints(0, 0), size, body.ints(2, 3))


def _hat(scale: int) -> FloatArray:
    """Weights with which the outputs around input j depend on it, in bilinear resizing by
    ``scale``.
    """
    count = 2 * scale - scale % 2
    offsets = (np.arange(count) - scale // 2 + 0.5) / scale - 0.5
    return np.maximum(0.0, 1.0 - np.abs(offsets))


def _fold_edges(body: _Body, value: str, axis: int) -> str:
    """Drop the first and last entries along ``axis`` and add them to their neighbours, also where
    these are one.
    """
    where = body.ints(axis)
    core = body.op("Slice", value, body.ints(1), body.ints(-1), where)
    first = body.op("Slice", value, body.ints(0), body.ints(1), where)
    last = body.op("Slice", value, body.ints(-1), body.ints(_END), where)
    size = body.op("Shape", core, start=axis, end=axis + 1)
    rest = body.op("Sub", size, body.ints(1))
    none = body.ints(0)
    at_start = body.op("Pad", first, body.op("Concat", none, rest, axis=0), "", where)
    at_end = body.op("Pad", last, body.op("Concat", rest, none, axis=0), "", where)
    return body.op("Add", body.op("Add", core, at_start), at_end)
