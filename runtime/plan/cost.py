"""What an operation costs: arithmetic and memory traffic, from the sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from edgeadapt.runtime.plan.ir import BYTES, Op, Program, Tensor

Operands = Mapping[str, Tensor]
_TAPS = {"linear": 4, "nearest": 1}  # products for each element of the larger image


def flops(op: Op, program: Program) -> int:
    """Additions and multiplications, one each; comparisons and copies count as one."""
    inputs = {role: program.tensors[name] for role, name in op.inputs.items()}
    outputs = {role: program.tensors[name] for role, name in op.outputs.items()}
    rule = _RULES.get(op.kind)
    if rule is not None:
        return rule(op, inputs, outputs)
    return sum(tensor.size for tensor in outputs.values())


def products(op: Op, program: Program) -> int | None:
    """Of a convolution, its gradient or a matrix product what the direct algorithm multiplies and
    adds, without bias and whatever else was fused with it; None of any other operation.

    It is what `torch.utils.flop_counter` counts, but for weight gradients by groups, which that
    takes for dense (``group`` times as much).
    """
    inputs = {role: program.tensors[name] for role, name in op.inputs.items()}
    outputs = {role: program.tensors[name] for role, name in op.outputs.items()}
    rule = _PRODUCTS.get(op.kind)
    return None if rule is None else rule(op, inputs, outputs)


def traffic(op: Op, program: Program) -> int:
    """Bytes read and written if each operand crosses to memory once."""
    names = dict.fromkeys((*op.inputs.values(), *op.outputs.values()))
    return sum(_extent(program.tensors[name]) for name in names)


def total_flops(program: Program) -> int:
    """Of all operations."""
    return sum(flops(op, program) for op in program.ops)


def _extent(tensor: Tensor) -> int:
    """Bytes of a tensor; what a stride of 0 repeats is read once."""
    lengths = zip(tensor.shape, tensor.strides, strict=True)
    return prod(1 if stride == 0 else n for n, stride in lengths) * BYTES[tensor.dtype]


def _conv_products(op: Op, inputs: Operands, outputs: Operands) -> int:
    """A product and a sum for each tap."""
    y, channels = outputs["y"], sum(x.shape[1] for x in _sources(inputs))
    pixels = prod((inputs["x0"] if op.attributes["transposed"] else y).shape[2:])
    taps = prod(op.attributes["kernel"]) * channels // op.attributes["group"]
    return 2 * pixels * y.shape[1] * taps


def _conv(op: Op, inputs: Operands, outputs: Operands) -> int:
    """The products, then one operation for each step that follows."""
    after = sum(role in inputs for role in ("bias", "add0", "add1", "post", "mask"))
    after += op.attributes.get("slope") is not None
    return _conv_products(op, inputs, outputs) + after * outputs["y"].size


def _weight_grad_products(op: Op, inputs: Operands, outputs: Operands) -> int:
    return 2 * outputs["weight"].size * prod(inputs["grad_y"].shape[2:])


def _weight_grad(op: Op, inputs: Operands, outputs: Operands) -> int:
    grad_y, weight = inputs["grad_y"], outputs["weight"]
    total = _weight_grad_products(op, inputs, outputs)
    total += weight.size if "sum_weight" in inputs else 0
    if "bias" in outputs:
        of_x = op.attributes["bias_of"] == "x"
        total += sum(t.size for t in (_sources(inputs) if of_x else [grad_y]))
    return total


def _sources(inputs: Operands) -> list[Tensor]:
    return [inputs[role] for role in ("x0", "x1", "x2", "x3") if role in inputs]


def _resize(op: Op, inputs: Operands, outputs: Operands) -> int:
    """Each element of the larger image is made of, or goes to, a few of the smaller one."""
    sizes = [t.size for role, t in (*inputs.items(), *outputs.items()) if role != "add"]
    extra = outputs["y"].size if "add" in inputs else 0
    return 2 * _TAPS[op.attributes["mode"]] * max(sizes) + extra


def _pool(op: Op, inputs: Operands, outputs: Operands) -> int:
    windows = min(t.size for t in (*inputs.values(), *outputs.values()))
    return windows * prod(op.attributes["kernel"])


def _matmul(op: Op, inputs: Operands, outputs: Operands) -> int:
    return 2 * outputs["y"].size * inputs["a"].shape[-1]


_PRODUCTS: Mapping[str, Callable[[Op, Operands, Operands], int]] = {
    "conv": _conv_products,
    "conv_weight_grad": _weight_grad_products,
    "matmul": _matmul,
}
_RULES: Mapping[str, Callable[[Op, Operands, Operands], int]] = {
    "conv": _conv,
    "conv_weight_grad": _weight_grad,
    "pointwise": lambda op, i, o: len(op.attributes["expression"]) * o["y"].size,
    "reduce": lambda op, i, o: (1 + (op.attributes["before"] is not None)) * i["x"].size,
    "matmul": _matmul,
    "resize": _resize,
    "resize_grad": _resize,
    "avg_pool": _pool,
    "avg_pool_grad": _pool,
    "max_pool": _pool,
    "max_pool_grad": _pool,
    "l1_loss": lambda op, i, o: 3 * i["a"].size,
    "update_sgd": lambda op, i, o: 2 * i["weight"].size,
}
