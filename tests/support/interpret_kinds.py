"""What each kind of operation of `edgeadapt.runtime.plan.kinds` computes, in PyTorch.

The adjoints are PyTorch's own derivative of the operation they belong to, so that they are no
second reading of the definition. A NaN in an operand reaches the result, also through a comparison:
nothing may depend on memory that was never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Attributes = Mapping[str, Any]
Results = dict[str, Tensor]


def conv(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    y = (_transposed if at["transposed"] else _plain)(_sources(x), x["weight"], shapes["y"], at)
    if at.get("out_channels") is not None and not _is_packed_part(x["weight"], shapes["y"], at):
        first, count = at["out_channels"]
        y = y[:, first : first + count]
    if "bias" in x:
        y = y + x["bias"][None, :, None, None]
    for role in ("add0", "add1"):
        y = y + x[role] if role in x else y
    if at.get("slope") is not None:
        y = torch.where(y > 0, y, at["slope"] * y)
    y = y + x["post"] if "post" in x else y
    if "mask" in x:
        y = leaky_grad(y, x["mask"], at["mask_slope"])
    return {"y": y}


def _plain(x: Tensor, weight: Tensor, shape: tuple[int, ...], at: Attributes) -> Tensor:
    return F.conv2d(
        _zero_padded(x, at["pads"]), weight, None, at["strides"], 0, at["dilations"], at["group"]
    )


def _transposed(x: Tensor, weight: Tensor, shape: tuple[int, ...], at: Attributes) -> Tensor:
    """All that the kernel reaches, then the window that begins at the pads and has y's size."""
    full = F.conv_transpose2d(x, weight, None, at["strides"], 0, 0, at["group"], at["dilations"])
    top, left = at["pads"][:2]
    below, right = (shape[2] + top - full.shape[2], shape[3] + left - full.shape[3])
    return _zero_padded(full, (-top, -left, below, right))


def _is_packed_part(weight: Tensor, shape: tuple[int, ...], at: Attributes) -> bool:
    """Whether a weight holds only the channels that are wanted, as `packed_part` cuts it."""
    return at["group"] == 1 and weight.shape[1 if at["transposed"] else 0] == shape[1]


def packed_part(weight: Tensor, at: Attributes) -> Tensor:
    """What of ``weight`` the interpreter's pack_weights keeps: the channels of ``out_channels``."""
    if at.get("out_channels") is None or at["group"] != 1:
        return weight
    first, count = at["out_channels"]
    return weight.narrow(1 if at["transposed"] else 0, first, count)


def pack_weights(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    """The values at the front, zeros behind: which layout an engine uses is its own affair."""
    values = packed_part(x["weight"], at).reshape(-1)
    room = torch.Size(shapes["y"]).numel() - values.numel()
    if room < 0:
        raise ValueError(f"pack_weights: {values.numel()} values do not fit {shapes['y']}")
    return {"y": F.pad(values, (0, room)).reshape(shapes["y"])}


def conv_weight_grad(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    source, grad = _sources(x), x["grad_y"]
    outputs, inputs, kh, kw = shapes["weight"]
    group, (rows, columns) = at["group"], grad.shape[2:]
    (row_step, column_step), (row_gap, column_gap) = at["strides"], at["dilations"]
    far = (rows * row_step + kh * row_gap, columns * column_step + kw * column_gap)
    padded = _zero_padded(source, (*at["pads"][:2], *far))  # no tap reaches further
    by_group = grad.reshape(group, outputs // group, rows, columns)
    weight = torch.empty(shapes["weight"], dtype=grad.dtype)
    for u in range(kh):
        for v in range(kw):
            tap = padded[:, :, u * row_gap :, v * column_gap :]
            tap = tap[:, :, : rows * row_step : row_step, : columns * column_step : column_step]
            tap = tap.reshape(group, inputs, rows, columns)
            product = torch.einsum("gohw,gchw->goc", by_group, tap)
            weight[:, :, u, v] = product.reshape(outputs, inputs)
    weight = at.get("scale", 1.0) * weight
    results = {"weight": weight + x["sum_weight"] if "sum_weight" in x else weight}
    if "bias" in shapes:
        bias = (grad if at["bias_of"] == "grad_y" else source).sum((0, 2, 3))
        bias = at.get("scale", 1.0) * bias
        results["bias"] = bias + x["sum_bias"] if "sum_bias" in x else bias
    return results


def leaky_grad(grad_y: Tensor, x: Tensor, slope: Tensor | float) -> Tensor:
    return torch.where(x > 0, grad_y, slope * grad_y) + _nan_of(x)


def _compare(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda a, b: function(a, b).double() + _nan_of(a) + _nan_of(b)


POINTWISE: Mapping[str, Callable[..., Tensor]] = {
    "copy": lambda x: x, "neg": torch.neg, "abs": torch.abs, "sqrt": torch.sqrt,
    "sign": lambda x: torch.sign(x) + _nan_of(x), "reciprocal": torch.reciprocal,
    "exp": torch.exp, "log": torch.log, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "erf": torch.erf, "floor": torch.floor, "round": torch.round, "not": lambda x: 1 - x,
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
    "max": torch.maximum, "min": torch.minimum,
    "gt": _compare(torch.gt), "ge": _compare(torch.ge), "lt": _compare(torch.lt),
    "le": _compare(torch.le), "eq": _compare(torch.eq), "ne": _compare(torch.ne),
    "and": _compare(torch.logical_and), "or": _compare(torch.logical_or),
    "where": lambda c, a, b: torch.where(c != 0, a, b) + _nan_of(c),
    "leaky": lambda x, slope: torch.where(x > 0, x, slope * x),
    "leaky_grad": leaky_grad,
}  # fmt: skip


def pointwise(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    for role, value in x.items():
        if tuple(value.shape) != shapes["y"]:
            raise ValueError(f"pointwise: {role} is {tuple(value.shape)}, y is {shapes['y']}")
    steps: list[Tensor] = []
    for function, arguments in at["expression"]:
        steps.append(POINTWISE[function](*(_argument(a, x, steps) for a in arguments)))
    return {"y": steps[-1].expand(shapes["y"])}


def _argument(argument: tuple[str, Any], x: Inputs, steps: list[Tensor]) -> Tensor:
    place, value = argument
    if place == "c":
        return torch.tensor(float(value), dtype=torch.float64)
    return x[f"x{value}"] if place == "x" else steps[value]


def reduce(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    value = {None: lambda v: v, "abs": torch.abs, "square": torch.square}[at["before"]](x["x"])
    for axis in at["axes"]:
        value = _REDUCE[at["how"]](value, axis)
    value = value * at["scale"]
    return {"y": torch.sqrt(value) if at["after"] == "sqrt" else value}


_REDUCE: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "sum": lambda x, axis: x.sum(axis, keepdim=True),
    "max": lambda x, axis: x.amax(axis, keepdim=True),
    "min": lambda x, axis: x.amin(axis, keepdim=True),
    "prod": lambda x, axis: x.prod(axis, keepdim=True),
}


def matmul(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return {"y": torch.matmul(x["a"], x["b"])}


def resize(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return _plus({"y": _resized(x["x"], at)}, x)


def _resized(x: Tensor, at: Attributes) -> Tensor:
    if at["mode"] == "nearest":
        return F.interpolate(x, scale_factor=at["scale"], mode="nearest")
    return F.interpolate(x, scale_factor=at["scale"], mode="bilinear", align_corners=False)


def avg_pool(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return {"y": _averaged(x["x"], at)}


def _averaged(x: Tensor, at: Attributes) -> Tensor:
    return F.avg_pool2d(_zero_padded(x, at["pads"]), at["kernel"], at["strides"])


def max_pool(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return {"y": _largest(x["x"], at)}


def _largest(x: Tensor, at: Attributes) -> Tensor:
    padded = _zero_padded(x, at["pads"], -torch.inf)
    return F.max_pool2d(padded, at["kernel"], at["strides"], 0, at["dilations"])


def pad(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return {"y": _padded(x["x"], at)}


def _padded(x: Tensor, at: Attributes) -> Tensor:
    """Axis by axis, by which element of x each one of y is."""
    rank = x.dim()
    for axis in range(rank):
        begin, end, size = at["pads"][axis], at["pads"][axis + rank], x.shape[axis]
        index = torch.arange(-begin, size + end)
        if at["mode"] == "reflect":
            inner = index.abs()
            inner = torch.where(inner >= size, 2 * (size - 1) - inner, inner)
        else:
            inner = index.clamp(0, size - 1)
        x = x.index_select(axis, inner)
        if at["mode"] == "constant":
            outside = ((index < 0) | (index >= size)).reshape([-1] + [1] * (rank - 1 - axis))
            x = torch.where(outside, torch.tensor(float(at["value"]), dtype=x.dtype), x)
    return x


def l1_loss(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    difference = x["a"] - x["b"]
    value = (difference.abs().sum() * at["value_scale"]).reshape(shapes["value"])
    return {
        "value": value,
        "grad": (torch.sign(difference) + _nan_of(difference)) * at["grad_scale"],
    }


def concat(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return {"y": torch.cat([x[f"x{i}"] for i in range(len(x))], at["axis"])}


def pack_together(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    """Each part as `pack_weights` has it, where it belongs."""
    y = torch.full(shapes["y"], torch.nan, dtype=torch.float64)
    for number, part in enumerate(at["parts"]):
        one = {"weight": x[f"weight{number}"]}
        packed = pack_weights(one, {"y": (part["count"],)}, part)["y"]
        y[part["offset"] : part["offset"] + part["count"]] = packed
    return {"y": y}


def update_together(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    """Of SGD; the step size is the engine's affair, and here it is 1."""
    by, numbers = 1 / at["gradient_factor"], range(len(shapes))
    return {f"weight_new{n}": x[f"weight{n}"] - by * x[f"grad{n}"] for n in numbers}


def update_sgd(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
    return {"weight_new": x["weight"] - at["step_size"] * x["grad"]}


def _adjoint(function: Callable[[Tensor, Attributes], Tensor]) -> Callable[..., Results]:
    """What PyTorch derives of ``function``, at x if the operation has it; plus ``add``."""

    def compute(x: Inputs, shapes: Shapes, at: Attributes) -> Results:
        at_x = x.get("x", torch.zeros(shapes["y"], dtype=torch.float64))
        at_x = at_x.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(at_x, at), at_x, x["grad_y"])
        return _plus({"y": grad}, x)

    return compute


def _plus(results: Results, x: Inputs) -> Results:
    return {"y": results["y"] + x["add"]} if "add" in x else results


def _sources(x: Inputs) -> Tensor:
    return torch.cat([x[role] for role in ("x0", "x1", "x2", "x3") if role in x], 1)


def _zero_padded(x: Tensor, pads: tuple[int, ...], value: float = 0.0) -> Tensor:
    """``pads`` are top, left, bottom, right; a negative one cuts."""
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value)


def _nan_of(x: Tensor) -> Tensor:
    """NaN where x is NaN, 0 elsewhere."""
    return torch.where(torch.isnan(x), x, torch.zeros_like(x))


COMPUTE: Mapping[str, Callable[[Inputs, Shapes, Attributes], Results]] = {
    "conv": conv, "pack_weights": pack_weights, "conv_weight_grad": conv_weight_grad,
    "pointwise": pointwise, "reduce": reduce, "matmul": matmul,
    "resize": resize, "resize_grad": _adjoint(_resized),
    "avg_pool": avg_pool, "avg_pool_grad": _adjoint(_averaged),
    "max_pool": max_pool, "max_pool_grad": _adjoint(_largest),
    "pad": pad, "pad_grad": _adjoint(_padded),
    "l1_loss": l1_loss, "concat": concat, "update_sgd": update_sgd,
    "pack_together": pack_together, "update_together": update_together,
}  # fmt: skip
