"""A convolution of a plan as cuDNN is told of it: what it is, apart from addresses, and its graph.

cuDNN's order of weights is "krsc" of `edgeadapt.kernels.cuda.pack_weights`: (K, C, r, s) with C
fastest. A plan's transposed convolution is the gradient of one in its input, of K channels at its
input and C at its output, so that for both the packed weight is cuDNN's filter as it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from edgeadapt.runtime.plan.bind import sources
from edgeadapt.runtime.plan.ir import BYTES, Dtype, Op, Program, Shape

OPERANDS = ("add0", "add1", "post", "mask")  # in the order in which they follow the sums
UIDS: Mapping[str, int] = {
    role: number for number, role in enumerate(("x", "weight", "bias", *OPERANDS, "y"), 1)
}
ALIGNMENT = 16  # bytes, of every tensor: what the frontend promises to cuDNN
_IN_16_BYTES: Mapping[Dtype, int] = {"f32": 4, "f16": 8, "bf16": 8}
_TYPES = {"f32": "FLOAT", "f16": "HALF", "bf16": "BFLOAT16"}
_MOST_ELEMENTS = 2**31


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

    transposed: bool
    compute: str  # "f32", "tf32", "f16" or "bf16"
    filter: Shape  # (K, C, r, s)
    pads: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    images: tuple[tuple[str, Layout], ...]  # role -> layout: x, y and operands
    bias: bool
    slope: float | None
    mask_slope: float | None

    def image(self, role: str) -> Layout:
        """Layout of an image that there is."""
        return dict(self.images)[role]

    @property
    def weights_dtype(self) -> Dtype:
        """Of packed weights."""
        return self.image("x").dtype

    @property
    def roles(self) -> tuple[str, ...]:
        """Of all tensors that there are, in the order of their numbers."""
        there = {"weight", *dict(self.images)} | ({"bias"} if self.bias else set())
        return tuple(role for role in UIDS if role in there)

    @property
    def key(self) -> str:
        """The same for the same convolution, on every machine."""
        return repr(self)


def convolution(op: Op, program: Program) -> Convolution | None:
    """What cuDNN may be asked to compute; None if the operation is not of that kind."""
    if op.kind != "conv" or op.attributes["group"] != 1 or len(sources(op)) != 1:
        return None
    at, tensors = op.attributes, program.tensors
    names = {"x": op.inputs["x0"], "y": op.outputs["y"]}
    names |= {role: op.inputs[role] for role in OPERANDS if role in op.inputs}
    images = {role: _layout(program, name) for role, name in names.items()}
    if not all(_readable(program, name) for name in names.values()):
        return None
    x, y = images["x"], images["y"]
    compute = at.get("compute", "f32")
    if x.dtype != {"tf32": "f32"}.get(compute, compute):
        return None
    bias = op.inputs.get("bias")
    if bias is not None and not _aligned(tensors[bias].offset * 4):
        return None
    large, small = (y, x) if at["transposed"] else (x, y)
    after = _pads_after(at, large.shape[2:], small.shape[2:])
    if after is None or min(at["pads"][:2]) < 0:
        return None
    return Convolution(
        bool(at["transposed"]),
        compute,
        (small.shape[1], large.shape[1], *at["kernel"]),
        (tuple(at["pads"][:2]), after),
        tuple(at["strides"]),
        tuple(at["dilations"]),
        tuple(images.items()),
        bias is not None,
        at["slope"],
        at["mask_slope"] if "mask" in op.inputs else None,
    )


def build(cudnn: Any, handle: Any, what: Convolution) -> Any:
    """The frontend's graph, checked by cuDNN; sums and what follows them are float32.

    Raises:
        Exception: of the frontend's kinds, if cuDNN does not take it.
    """
    single = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=single,
        intermediate_data_type=single,
        compute_data_type=single,
        handle=handle,
    )
    tensors = {role: _tensor(cudnn, graph, what, role) for role in what.roles if role != "y"}
    found = {
        "pre_padding": list(what.pads[0]),
        "post_padding": list(what.pads[1]),
        "stride": list(what.strides),
        "dilation": list(what.dilations),
        "compute_data_type": single,
    }
    y = what.image("y")
    if what.transposed:
        sums = graph.conv_dgrad(loss=tensors["x"], filter=tensors["weight"], **found)
    else:
        sums = graph.conv_fprop(image=tensors["x"], weight=tensors["weight"], **found)
    sums.set_dim(list(y.shape)).set_stride(list(y.strides))
    result = _finished(graph, what, tensors, sums, single)
    result.set_output(True).set_uid(UIDS["y"])
    result.set_dim(list(y.shape)).set_stride(list(y.strides))
    result.set_data_type(getattr(cudnn.data_type, _TYPES[y.dtype]))
    graph.validate()
    graph.build_operation_graph()
    return graph


def _finished(
    graph: Any, what: Convolution, tensors: Mapping[str, Any], sums: Any, single: Any
) -> Any:
    """What follows the sums, in the plan's order."""
    value = sums
    for role in ("bias", "add0", "add1", "slope", "post", "mask"):
        before = value
        if role == "slope" and what.slope is not None:
            value = graph.leaky_relu(input=value, negative_slope=what.slope)
        elif role == "mask" and "mask" in tensors:
            value = graph.leaky_relu_backward(
                loss=value, input=tensors["mask"], negative_slope=what.mask_slope
            )
        elif role in tensors:
            value = graph.add(a=value, b=tensors[role])
        if value is not before:
            before.set_data_type(single)
    return value


def _tensor(cudnn: Any, graph: Any, what: Convolution, role: str) -> Any:
    shape: Shape
    strides: Shape
    dtype: Dtype
    if role == "bias":
        channels = what.image("y").shape[1]
        shape, strides, dtype = (1, channels, 1, 1), (channels, 1, channels, channels), "f32"
    elif role == "weight":
        shape, (_, inner, rows, columns) = what.filter, what.filter
        strides = (inner * rows * columns, 1, columns * inner, inner)
        dtype = what.weights_dtype
    else:
        image = what.image(role)
        shape, strides, dtype = image.shape, image.strides, image.dtype
    return graph.tensor(
        dim=list(shape),
        stride=list(strides),
        data_type=getattr(cudnn.data_type, _TYPES[dtype]),
        uid=UIDS[role],
        name=role,
    )


def _layout(program: Program, name: str) -> Layout:
    tensor = program.tensors[name]
    rows, strides = tensor.shape[2], tensor.strides
    # The distance of images, of which there is one, is made up: cuDNN orders axes by it.
    return Layout(tensor.shape, (rows * strides[2], *strides[1:]), tensor.dtype)


def _readable(program: Program, name: str) -> bool:
    """Whether it lies pixel by pixel, in whole 16 bytes."""
    tensor = program.tensors[name]
    if tensor.dtype not in _IN_16_BYTES or tensor.storage == "constant":
        return False
    unit = _IN_16_BYTES[tensor.dtype]
    _, channels, rows, columns = tensor.shape
    _, step, row, pixel = tensor.strides
    first = tensor.view.offset if tensor.view else tensor.offset
    return (
        step == 1
        and pixel >= channels
        and row >= pixel * columns
        and all(n % unit == 0 for n in (channels, pixel, row))
        and _aligned(first * BYTES[tensor.dtype])
        and prod((rows, row)) < _MOST_ELEMENTS
    )


def _aligned(nbytes: int) -> bool:
    return nbytes % ALIGNMENT == 0


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
