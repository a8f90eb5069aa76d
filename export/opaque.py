"""Operators kept whole while the backward pass is traced.

PyTorch would expand each of them into size-dependent pieces, or fix the image size on the way. Kept
whole they reach the bundle as one node with a meaning. Each has an eager implementation, so a
traced graph also runs in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import grad as conv_grad
from torch.overrides import TorchFunctionMode

from edgeadapt.errors import ExportError

Ints = list[int]


@torch.library.custom_op("edgeadapt::conv_weight_grad", mutates_args=())
def conv_weight_grad(
    x: Tensor,
    grad_y: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """Gradient of conv2d(x, weight) in its weight: (Co, Ci / groups, kh, kw)."""
    shape = [grad_y.shape[1], x.shape[1] // groups, *kernel]
    return conv_grad.conv2d_weight(  # type: ignore[no-untyped-call]
        x, shape, grad_y, stride, padding, dilation, groups
    )


@conv_weight_grad.register_fake
def _(
    x: Tensor,
    grad_y: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    return x.new_empty([grad_y.shape[1], x.shape[1] // groups, *kernel])


@torch.library.custom_op("edgeadapt::conv_input_grad", mutates_args=())
def conv_input_grad(
    x: Tensor,
    grad_y: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """Gradient of conv2d(x, weight) in its input; of ``x`` only the shape is used."""
    return conv_grad.conv2d_input(  # type: ignore[no-untyped-call]
        list(x.shape), weight, grad_y, stride, padding, dilation, groups
    )


@conv_input_grad.register_fake
def _(
    x: Tensor,
    grad_y: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("edgeadapt::resize", mutates_args=())
def resize(x: Tensor, scale: int, mode: str) -> Tensor:
    """F.interpolate by an integer factor, "bilinear" (half-pixel centres) or "nearest"."""
    return F.interpolate(x, scale_factor=scale, mode=mode, **_corners(mode))


@resize.register_fake
def _(x: Tensor, scale: int, mode: str) -> Tensor:
    return x.new_empty([x.shape[0], x.shape[1], x.shape[2] * scale, x.shape[3] * scale])


@torch.library.custom_op("edgeadapt::resize_grad", mutates_args=())
def resize_grad(x: Tensor, grad_y: Tensor, scale: int, mode: str) -> Tensor:
    """Gradient of `resize` in its input; of ``x`` only the shape is used."""
    size, shape = list(grad_y.shape[2:]), list(x.shape)
    if mode == "nearest":
        return torch.ops.aten.upsample_nearest2d_backward(grad_y, size, shape)
    return torch.ops.aten.upsample_bilinear2d_backward(grad_y, size, shape, False)


@resize_grad.register_fake
def _(x: Tensor, grad_y: Tensor, scale: int, mode: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("edgeadapt::constant_pad", mutates_args=())
def constant_pad(x: Tensor, pads: Ints, value: float = 0.0) -> Tensor:
    """F.pad with a constant; a negative pad cuts off. PyTorch's own would fix the image size."""
    return F.pad(x, pads, value=value).clone()


@constant_pad.register_fake
def _(x: Tensor, pads: Ints, value: float = 0.0) -> Tensor:
    shape = list(x.shape)
    for position, (begin, end) in enumerate(zip(pads[::2], pads[1::2], strict=True), 1):
        shape[-position] = shape[-position] + begin + end
    return x.new_empty(shape)


def _save_resize(ctx: Any, inputs: tuple[Tensor, int, str], output: Tensor) -> None:
    x, ctx.scale, ctx.mode = inputs
    ctx.save_for_backward(x)


def _resize_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
    return (
        torch.ops.edgeadapt.resize_grad(ctx.saved_tensors[0], grad_y, ctx.scale, ctx.mode),
        None,
        None,
    )


resize.register_autograd(_resize_backward, setup_context=_save_resize)


def _corners(mode: str) -> dict[str, bool]:
    return {"align_corners": False} if mode == "bilinear" else {}


class KeepResizeWhole(TorchFunctionMode):
    """While active, F.interpolate becomes `resize`: PyTorch's own would fix the image size while
    tracing.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        if func is F.interpolate:
            return _whole_resize(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _whole_resize(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    plain = not align_corners and not antialias and x.dim() == 4
    if plain and mode in ("bilinear", "nearest"):
        enlarged = _factor(x, size, scale_factor)
        if enlarged is not None:
            return torch.ops.edgeadapt.resize(x, enlarged, mode)
        reduced = _reduction(scale_factor)
        if reduced is not None and mode == "nearest":
            return x[:, :, ::reduced, ::reduced]
        if reduced == 2:  # half-pixel centres: each output is the mean of four inputs
            return F.avg_pool2d(x, 2)
    raise ExportError(
        f"F.interpolate(size={size}, scale_factor={scale_factor}, mode={mode!r}, "
        f"align_corners={align_corners}, antialias={antialias}) on {x.dim()} dimensions has no "
        "lowering.",
        "enlarge by a whole number with mode 'bilinear' (align_corners=False) or 'nearest' on "
        "(N, C, H, W), or reduce by 1/2.",
    )


def _factor(x: Tensor, size: Any, scale_factor: Any) -> int | None:
    """The whole number by which both sides grow, if that is the same for every image size."""
    if size is not None:
        sides = list(size) if isinstance(size, tuple | list | torch.Size) else [size, size]
        for factor in range(1, 33):
            pairs = zip(sides, x.shape[2:], strict=True)
            if all(statically_known_true(side == factor * old) for side, old in pairs):
                return factor
        return None
    factors = set(scale_factor) if isinstance(scale_factor, tuple | list) else {scale_factor}
    factor = factors.pop()
    return int(factor) if not factors and float(factor).is_integer() and factor >= 1 else None


def _reduction(scale_factor: Any) -> int | None:
    """n for a scale factor of 1 / n."""
    factors = set(scale_factor) if isinstance(scale_factor, tuple | list) else {scale_factor}
    inverse = 1 / factors.pop() if None not in factors else 0.5
    return round(inverse) if not factors and inverse > 1 and inverse.is_integer() else None


def _convolution_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """aten.convolution_backward in parts, so that the part nobody asks for is not there to be
    computed.

    A transposed convolution is the input gradient of a convolution, so its own input gradient is
    that convolution, and its weight gradient is that convolution's with the roles of x and grad_y
    exchanged."""
    ops = torch.ops.edgeadapt
    wants_x, wants_weight, wants_bias = output_mask
    grad_x = grad_weight = None
    kernel = list(weight.shape[2:])
    if transposed:
        if wants_x:
            grad_x = F.conv2d(grad_y, weight, None, stride, padding, dilation, groups)
        if wants_weight:
            grad_weight = ops.conv_weight_grad(grad_y, x, kernel, stride, padding, dilation, groups)
    else:
        if wants_x:
            grad_x = ops.conv_input_grad(x, grad_y, weight, stride, padding, dilation, groups)
        if wants_weight:
            grad_weight = ops.conv_weight_grad(x, grad_y, kernel, stride, padding, dilation, groups)
    return grad_x, grad_weight, grad_y.sum([0, 2, 3]) if wants_bias else None


# Operators with a lowering of their own, which says more than the pieces would.
_WHOLE = {
    "_to_copy",
    "detach",
    "full_like",
    "gelu",
    "leaky_relu",
    "leaky_relu_backward",
    "ones_like",
    "reflection_pad2d",
    "reflection_pad2d_backward",
    "replication_pad2d",
    "roll",
    "rsub",
    "select_backward",
    "silu",
    "slice_backward",
    "softplus",
    "stack",
    "zeros_like",
}
# Operators that PyTorch counts as core, though it can take them apart.
_TAKEN_APART = [
    torch.ops.aten.addmm,
    torch.ops.aten.native_batch_norm,
    torch.ops.aten.native_layer_norm,
    torch.ops.aten.log_sigmoid_forward,
]


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's own reduction to core operators, but for those kept whole."""
    table: dict[Any, Callable[..., Any]] = dict(torch._decomp.core_aten_decompositions())
    table.update(torch._decomp.get_decompositions(_TAKEN_APART))
    for overload in list(table):
        if overload.name().partition("::")[2].partition(".")[0] in _WHOLE:
            del table[overload]
    table[torch.ops.aten.convolution_backward.default] = _convolution_backward
    table[torch.ops.aten.constant_pad_nd.default] = torch.ops.edgeadapt.constant_pad
    return table


DECOMPOSITIONS = _decompositions()
