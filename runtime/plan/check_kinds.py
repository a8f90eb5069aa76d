"""What each kind of operation wants of its operands' shapes and of its attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgeadapt.runtime.plan.ir import Op, Shape, Tensor
from edgeadapt.runtime.plan.kinds import FUNCTIONS, MAX_SOURCES, MAX_STEPS
from edgeadapt.runtime.plan.shapes import is_contiguous, is_image, spread, windows

Operands = Mapping[str, Tensor]
Wants = Callable[[Op, Operands, bool], None]
WANTS: dict[str, Wants] = {}
_SOURCES = tuple(f"x{number}" for number in range(MAX_SOURCES))


def _wants(*kinds: str) -> Callable[[Wants], Wants]:
    def register(function: Wants) -> Wants:
        WANTS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _want(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _shape(at: Operands, role: str, wanted: Shape) -> None:
    if role in at:
        _want(at[role].shape == wanted, f"{role} must be {wanted}, is {at[role].shape}")


def _planes(at: Operands, *roles: str) -> None:
    for role in roles:
        if role in at:
            tensor = at[role]
            _want(is_image(tensor), f"{role} is no (1, C, H, W) with contiguous rows: {tensor}")


def _sources(at: Operands) -> Shape:
    """The shape of the concatenation that the sources stand for."""
    have = [at[role].shape for role in _SOURCES if role in at]
    _want(all(role in at for role in _SOURCES[: len(have)]), "sources are not numbered on")
    _planes(at, *_SOURCES)
    _want(len({shape[2:] for shape in have}) == 1, f"sources differ in size: {have}")
    return (1, sum(shape[1] for shape in have), *have[0][2:])


def _pairs(op: Op) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, sum of pads, dilation of each of the two axes; all are checked."""
    at = op.attributes
    for name, count, least in (("kernel", 2, 1), ("strides", 2, 1), ("dilations", 2, 1)):
        found = at.get(name, (1, 1))
        good = len(found) == count and all(type(n) is int and n >= least for n in found)
        _want(good, f"{name} {found}")
    pads = at["pads"]
    _want(len(pads) == 4 and all(type(n) is int for n in pads), f"pads {pads}")
    gaps = at.get("dilations", (1, 1))
    return [(at["kernel"][i], at["strides"][i], pads[i] + pads[i + 2], gaps[i]) for i in (0, 1)]


def _window_fits(op: Op, wide: Shape, narrow: Shape, loose: bool = False) -> None:
    """Windows over ``wide`` give ``narrow``.

    ``loose``: narrow was first, and wide may have padding at its end that no window reaches.
    """
    for axis, (kernel, stride, pads, gap) in enumerate(_pairs(op), 2):
        n, count = wide[axis], narrow[axis]
        least = spread(count, kernel, stride, pads, gap)
        good = windows(n, kernel, stride, pads, gap) == count
        good = good or (loose and least <= n < least + max(stride, gap))
        _want(good, f"windows over {wide} do not give {narrow}")


def _is_group(op: Op, *channels: int) -> bool:
    group = op.attributes["group"]
    return type(group) is int and group >= 1 and all(count % group == 0 for count in channels)


@_wants("conv")
def _conv(op: Op, at: Operands, packed: bool) -> None:
    x, y, attributes = _sources(at), at["y"].shape, op.attributes
    _planes(at, "add0", "add1", "post", "mask", "y")
    for role in ("add0", "add1", "post", "mask"):
        _shape(at, role, y)
    _shape(at, "bias", (y[1],))
    _want(
        all(is_contiguous(at[r]) for r in ("weight", "bias") if r in at), "bias or weight strided"
    )
    _want("mask" not in at or attributes["mask_slope"] is not None, "a mask without mask_slope")
    wide, narrow = (y, x) if attributes["transposed"] else (x, y)
    _window_fits(op, wide, narrow, loose=bool(attributes["transposed"]))
    if not packed:
        _weight(op, at["weight"].shape, x[1], y[1])
    _want("x1" not in at or attributes["group"] == 1, "groups of several sources")


def _weight(op: Op, weight: Shape, inputs: int, outputs: int) -> None:
    attributes = op.attributes
    _want(len(weight) == 4 and weight[2:] == attributes["kernel"], f"weight is {weight}")
    group = attributes["group"]
    _want(_is_group(op, inputs, weight[0]), f"group {group} of {inputs} channels")
    transposed = attributes["transposed"]
    have = weight[0] if transposed else weight[1] * group
    _want(have == inputs, f"the weight {weight} takes {have} channels, gets {inputs}")
    total = weight[1] * group if transposed else weight[0]
    first, count = attributes["out_channels"] or (0, total)
    fits = first >= 0 and first + count <= total and count == outputs
    _want(fits, f"out_channels {first, count} of {total} for a y of {outputs}")
    _want(group == 1 or count == total, "out_channels of groups")


@_wants("pack_weights")
def _pack(op: Op, at: Operands, packed: bool) -> None:
    _want(is_contiguous(at["weight"]) and len(at["weight"].shape) == 4, "weight is strided")
    _, count = op.attributes["out_channels"] or (0, 0)
    _want(at["y"].size > 0 and count >= 0, "nothing is packed")


@_wants("pack_together")
def _pack_together(op: Op, at: Operands, packed: bool) -> None:
    parts, end = op.attributes["parts"], 0
    _want(len(parts) == len(op.inputs) > 0, f"{len(parts)} parts of {len(op.inputs)} weights")
    for number, part in enumerate(parts):
        _pack(Op("pack_weights", {}, {}, part), {"weight": at[f"weight{number}"], **at}, packed)
        _want(part["offset"] >= end and part["count"] > 0, f"part {number} begins before {end}")
        end = part["offset"] + part["count"]
    _want(end <= at["y"].size, f"{end} elements in {at['y'].size}")


@_wants("conv_weight_grad")
def _weight_grad(op: Op, at: Operands, packed: bool) -> None:
    x, grad_y, group = _sources(at), at["grad_y"].shape, op.attributes["group"]
    _planes(at, "grad_y")
    _window_fits(op, x, grad_y, loose=True)
    _want(_is_group(op, x[1], grad_y[1]), f"group {group} of {x[1]} and {grad_y[1]} channels")
    _want("x1" not in at or group == 1, "groups of several sources")
    weight = (grad_y[1], x[1] // group, *op.attributes["kernel"])
    _shape(at, "weight", weight)
    _shape(at, "sum_weight", weight)
    _want(op.attributes["bias_of"] in ("grad_y", "x"), f"bias_of {op.attributes['bias_of']!r}")
    channels = grad_y[1] if op.attributes["bias_of"] == "grad_y" else x[1]
    for role in ("bias", "sum_bias"):
        _shape(at, role, (channels,))
    _want("sum_bias" not in at or "bias" in at, "sum_bias without bias")
    results = [at[r] for r in ("weight", "sum_weight", "bias", "sum_bias") if r in at]
    _want(all(map(is_contiguous, results)), "a result is strided")


@_wants("pointwise")
def _pointwise(op: Op, at: Operands, packed: bool) -> None:
    for role in op.inputs:
        _shape(at, role, at["y"].shape)
    count = len(op.inputs)
    _want(all(f"x{i}" in op.inputs for i in range(count)), "inputs are not numbered on")
    steps = op.attributes["expression"]
    _want(0 < len(steps) <= MAX_STEPS, f"{len(steps)} steps, {MAX_STEPS} is the most")
    used = set()
    for position, (function, arguments) in enumerate(steps):
        _want(function in FUNCTIONS, f"no function {function!r}")
        _want(len(arguments) == FUNCTIONS[function], f"{function} of {len(arguments)} arguments")
        for kind, value in arguments:
            _want(_is_argument(kind, value, count, position), f"step {position} of {kind, value}")
            used.add((kind, value))
    _want(all(("x", i) in used for i in range(count)), "an input is not used")


def _is_argument(kind: str, value: Any, inputs: int, position: int) -> bool:
    if kind == "c":
        return isinstance(value, int | float)
    return type(value) is int and 0 <= value < {"x": inputs, "t": position}.get(kind, 0)


@_wants("reduce")
def _reduce(op: Op, at: Operands, packed: bool) -> None:
    attributes, x, axes = op.attributes, at["x"].shape, op.attributes["axes"]
    _want(attributes["how"] in ("sum", "max", "min", "prod"), f"how {attributes['how']!r}")
    _want(attributes["before"] in (None, "abs", "square"), f"before {attributes['before']!r}")
    _want(attributes["after"] in (None, "sqrt"), f"after {attributes['after']!r}")
    _want(isinstance(attributes["scale"], int | float), f"scale {attributes['scale']!r}")
    _want(axes == tuple(sorted(set(axes))), f"axes {axes}")
    _want(all(0 <= axis < len(x) for axis in axes), f"axes {axes} of {x}")
    _shape(at, "y", tuple(1 if axis in axes else n for axis, n in enumerate(x)))


@_wants("matmul")
def _matmul(op: Op, at: Operands, packed: bool) -> None:
    a, b = at["a"].shape, at["b"].shape
    _want(len(a) == len(b) >= 2 and a[-1] == b[-2], f"{a} by {b}")
    batches = list(zip(a[:-2], b[:-2], strict=True))
    _want(all(m == n or 1 in (m, n) for m, n in batches), f"{a} by {b}")
    _shape(at, "y", (*(max(m, n) for m, n in batches), a[-2], b[-1]))


@_wants("resize", "resize_grad")
def _resize(op: Op, at: Operands, packed: bool) -> None:
    mode, scale = op.attributes["mode"], op.attributes["scale"]
    _want(mode in ("linear", "nearest"), f"mode {mode!r}")
    _want(scale > 0, f"scale {scale}")
    small, large = (at["x"], at["y"]) if op.kind == "resize" else (at["y"], at["grad_y"])
    _planes(at, *op.inputs, "y")
    wanted = (*small.shape[:2], *(round(n * scale) for n in small.shape[2:]))
    _want(large.shape == wanted, f"{small.shape} times {scale} is not {large.shape}")
    _shape(at, "add", at["y"].shape)


@_wants("avg_pool", "max_pool")
def _pool(op: Op, at: Operands, packed: bool) -> None:
    _planes(at, "x", "y")
    _window_fits(op, at["x"].shape, at["y"].shape)
    _shape(at, "y", (*at["x"].shape[:2], *at["y"].shape[2:]))


@_wants("avg_pool_grad", "max_pool_grad")
def _pool_grad(op: Op, at: Operands, packed: bool) -> None:
    _planes(at, *op.inputs, "y")
    _window_fits(op, at["y"].shape, at["grad_y"].shape)
    _shape(at, "grad_y", (*at["y"].shape[:2], *at["grad_y"].shape[2:]))
    for role in ("x", "add"):
        _shape(at, role, at["y"].shape)


@_wants("pad", "pad_grad")
def _pad(op: Op, at: Operands, packed: bool) -> None:
    inner, outer = (at["x"], at["y"]) if op.kind == "pad" else (at["y"], at["grad_y"])
    pads, mode, rank = op.attributes["pads"], op.attributes["mode"], len(inner.shape)
    modes = ("constant", "reflect", "edge") if op.kind == "pad" else ("reflect", "edge")
    _want(mode in modes, f"mode {mode!r}")
    _want(len(pads) == 2 * rank, f"pads {pads} of {inner.shape}")
    _want(mode != "reflect" or all(p < n for p, n in zip(pads, inner.shape * 2, strict=True)),
          f"{pads} reflects more than there is in {inner.shape}")  # fmt: skip
    ends = zip(inner.shape, pads[:rank], pads[rank:], strict=True)
    wanted = tuple(n + begin + end for n, begin, end in ends)
    _want(outer.shape == wanted, f"{inner.shape} with {pads} is not {outer.shape}")


@_wants("l1_loss")
def _l1_loss(op: Op, at: Operands, packed: bool) -> None:
    _planes(at, "a", "b", "grad")
    for role in ("b", "grad"):
        _shape(at, role, at["a"].shape)
    _want(at["value"].size == 1, f"value is {at['value'].shape}")


@_wants("concat")
def _concat(op: Op, at: Operands, packed: bool) -> None:
    parts = [at[f"x{number}"].shape for number in range(len(op.inputs)) if f"x{number}" in at]
    axis, y = op.attributes["axis"], at["y"].shape
    _want(0 <= axis < len(y) and len(parts) == len(op.inputs), f"axis {axis} of {parts}")
    alike = all((*p[:axis], *p[axis + 1 :]) == (*y[:axis], *y[axis + 1 :]) for p in parts)
    _want(alike and sum(p[axis] for p in parts) == y[axis], f"{parts} do not make {y}")


@_wants("update_together")
def _update_together(op: Op, at: Operands, packed: bool) -> None:
    optimizer, factor = op.attributes["optimizer"], op.attributes["gradient_factor"]
    _want(optimizer in ("sgd", "adam") and factor > 0, f"{optimizer!r} of {factor!r}")
    _want(len(op.inputs) == 2 * len(op.outputs), "not a gradient and a result for each weight")
    for number in range(len(op.outputs)):
        wanted = at[f"weight{number}"].shape
        for role in (f"grad{number}", f"weight_new{number}"):
            _shape(at, role, wanted)


@_wants("update_sgd")
def _update(op: Op, at: Operands, packed: bool) -> None:
    for role in ("grad", "weight_new"):
        _shape(at, role, at["weight"].shape)
    _want(isinstance(op.attributes["step_size"], int | float), "step_size is no number")
