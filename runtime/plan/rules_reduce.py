"""Rules of sums and the like over axes, of what is made of them, and of products of matrices."""

from __future__ import annotations

from math import prod

from edgeadapt.runtime.plan.ir import Shape, Tensor, contiguous
from edgeadapt.runtime.plan.rules import Builder, Node, NoRuleError, Value, ints, reads
from edgeadapt.runtime.plan.rules_pointwise import pointwise
from edgeadapt.runtime.plan.shapes import broadcast

# How elements are joined, what is done to each before, and to the result after.
_REDUCTIONS: dict[str, tuple[str, str | None, str | None]] = {
    "ReduceSum": ("sum", None, None),
    "ReduceMean": ("sum", None, None),
    "ReduceMax": ("max", None, None),
    "ReduceMin": ("min", None, None),
    "ReduceProd": ("prod", None, None),
    "ReduceL1": ("sum", "abs", None),
    "ReduceL2": ("sum", "square", "sqrt"),
    "ReduceSumSquare": ("sum", "square", None),
}


@reads(*_REDUCTIONS)
def reduction(builder: Builder, node: Node, x: Value, over: Value | None = None) -> Value:
    axes = ints(over)
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        if node.kind in ("ReduceL1", "ReduceL2", "ReduceSumSquare"):
            raise NoRuleError("over no axes")
        return x
    if not prod(x.shape):
        raise NoRuleError("of nothing")
    rank = len(x.shape)
    axes = tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    lengths = [x.shape[axis] for axis in axes]
    shape = kept
    if not node.attributes.get("keepdims", 1):
        shape = tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    how, before, after = _REDUCTIONS[node.kind]
    scale = 1.0 / prod(lengths) if node.kind == "ReduceMean" else 1.0
    whole = builder.result(node.name, shape)
    _reduce(builder, whole, x, axes, how, before=before, after=after, scale=scale)
    return whole


def _reduce(
    builder: Builder,
    whole: Tensor,
    x: Value,
    axes: tuple[int, ...],
    how: str,
    *,
    before: str | None = None,
    after: str | None = None,
    scale: float = 1.0,
) -> None:
    """Write ``whole``, whose shape may leave out the axes that the operation keeps as 1."""
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    y = builder.view(whole, kept, contiguous(kept))
    builder.emit(
        "reduce", {"x": builder.tensor(x)}, y, whole.name,
        how=how, axes=axes, before=before, after=after, scale=scale,
    )  # fmt: skip


@reads("Softmax", "LogSoftmax")
def softmax(builder: Builder, node: Node, x: Value) -> Value:
    axis = node.attributes.get("axis", -1) % len(x.shape)
    name, kept = node.name, tuple(1 if a == axis else n for a, n in enumerate(x.shape))

    def reduced(part: str, how: str, value: Value) -> Tensor:
        y = builder.result(f"{name}/{part}", kept)
        _reduce(builder, y, value, (axis,), how)
        return y

    first, second = ("in", 0), ("in", 1)
    largest = reduced("max", "max", x)
    if node.kind == "Softmax":
        steps = [("sub", (first, second)), ("exp", (("t", 0),))]
        raised = pointwise(builder, f"{name}/exp", steps, x, largest)
        return pointwise(
            builder, name, [("div", (first, second))], raised, reduced("sum", "sum", raised)
        )
    lowered = pointwise(builder, f"{name}/sub", [("sub", (first, second))], x, largest)
    raised = pointwise(builder, f"{name}/exp", [("exp", (first,))], lowered)
    logs = [("log", (second,)), ("sub", (first, ("t", 0)))]
    return pointwise(builder, name, logs, lowered, reduced("sum", "sum", raised))


@reads("MatMul")
def product(builder: Builder, node: Node, a: Value, b: Value) -> Value:
    left: Shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right: Shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    rank = max(len(left), len(right))
    left, right = (1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right
    full = (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])
    short = full if len(b.shape) > 1 else full[:-1]
    short = short if len(a.shape) > 1 else (*short[: rank - 2], *short[rank - 1 :])
    whole = builder.result(node.name, short)
    inputs = {"a": _with_axes(builder, a, left), "b": _with_axes(builder, b, right)}
    builder.emit("matmul", inputs, builder.view(whole, full, contiguous(full)), node.name)
    return whole


def _with_axes(builder: Builder, value: Value, shape: Shape) -> Tensor:
    """``value`` with axes of length 1 added: in front, or one behind."""
    x = builder.tensor(value)
    if x.shape == shape:
        return x
    behind = shape[-1] == 1 and len(x.shape) == 1 and x.shape != (1,)
    strides = (*x.strides, 1) if behind else x.strides
    return builder.view(x, shape, (0,) * (len(shape) - len(strides)) + strides)
