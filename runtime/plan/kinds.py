"""The operations a plan may hold: a closed set, so that an engine is complete when it has them all.

Activations are (1, C, H, W), planar: a row of pixels is contiguous (stride 1 along W), rows, planes
and their distances are the tensor's strides. A convolution reads a concatenation along channels as
up to four sources, so the concatenation itself is never made; a slice of channels is a view.

`y` is written with `=` everywhere. A role in [] may be absent.

conv                x0 [x1 x2 x3] weight [bias] [add0] [add1] [post] [mask] -> y
    A convolution, or with ``transposed`` a transposed one (also the gradient of a convolution in
    its input, with the convolution's own weights). In this order: + bias, + add0, + add1, LeakyReLU
    if ``slope`` is given, + post, and the gradient of LeakyReLU with respect to its input where
    ``mask`` is given: times 1 where mask > 0, times ``mask_slope`` elsewhere. ``weight`` is
    the parameter (Co, Ci / group, kh, kw), transposed (Ci, Co / group, kh, kw), as it lies in the
    flat array, or after the stage `pack` what `pack_weights` made of it.
    ``compute`` "bf16", "f16" or "tf32" rounds what is multiplied to that and adds up in float32; it
    is "f32" where it is absent, and belongs to pack_weights and conv_weight_grad as well.
    ``algorithm`` is "direct" (also where it is absent) or "winograd", on CUDA "cudnn"; the same for
    pack_weights, and on CUDA for conv_weight_grad.
    kernel (2), strides (2), pads (top, left, bottom, right; may be negative), dilations (2), group,
    transposed, slope | None, mask_slope, out_channels (first, count) of the weight's; y has
    ``count`` channels. The size of y is the tensor's own: what a transposed convolution leaves open
    (output padding) is settled by it.
pack_weights        weight -> y
    The order, type and layout in which the engine's conv reads a weight; attributes as the conv's.
pack_together       weight0 weight1 ... -> y
    What as many pack_weights do, one behind the other in y. parts: for each the attributes of that
    operation, its ``offset`` in elements of y and its ``count`` there.
conv_weight_grad    x0 [x1 x2 x3] grad_y [sum_weight] [sum_bias] -> weight [bias]
    weight[o, c, u, v] = sum over i, j of grad_y[o, i, j] * x[c, i * stride + u * dilation - pad,
    j * ...], plus sum_weight; bias = sum of ``bias_of`` ("grad_y" or "x") over pixels, plus
    sum_bias. sum_weight and weight lie in the same place, so do sum_bias and bias. ``scale``, 1
    where it is absent, multiplies the two sums before what they are added to.
    kernel, strides, pads, dilations, group, bias_of.
pointwise           x0 ... x7 -> y
    One expression for each element; inputs have y's shape (a broadcast is a view with stride 0).
    expression: a tuple of steps, each (function, arguments); an argument is ("x", i) an input,
    ("t", k) the result of step k, or ("c", value) a number. The last step is the result.
    Functions: FUNCTIONS below. bool tensors read as 0 and 1.
reduce              x -> y
    how ("sum" "max" "min" "prod"), axes (all that are summed; kept with length 1 in y's shape),
    before (None "abs" "square"), after (None "sqrt"), scale (a number that multiplies the result
    before ``after``: 1 / count makes a mean).
matmul              a b -> y            batched; all three have the same rank >= 2, a batch may be 1
resize              x [add] -> y        mode ("linear" "nearest"), scale (up: > 1, down: 1 / n)
resize_grad         grad_y [add] -> y   the adjoint; attributes of the resize
avg_pool            x -> y              kernel, strides, pads (counted as zeros)
avg_pool_grad       grad_y [add] -> y   the adjoint
max_pool            x -> y              kernel, strides, pads, dilations
max_pool_grad       grad_y x -> y       to the first largest pixel of each window
pad                 x -> y              pads (begins of all axes, ends of all; negative: cut),
                                        mode ("constant" "reflect" "edge"), value
pad_grad            grad_y -> y         the adjoint of "reflect" and "edge"
l1_loss             a b -> value [grad] value = value_scale * sum |a - b|; grad = grad_scale *
                                        sign(a - b), 0 where a = b
concat              x0 x1 ... -> y      axis; only before the stage `fuse`, which leaves none
update_sgd          weight grad -> weight_new   step_size; same place
update_together     weight0 grad0 ... -> weight_new0 ...
    A step of the optimizer for several parameters, each in its place. Its state and step sizes
    belong to the engine. optimizer ("sgd" "adam"), gradient_factor (what the gradients were
    multiplied by).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Functions of a pointwise expression and how many arguments they take.
FUNCTIONS: Mapping[str, int] = {
    "copy": 1, "neg": 1, "abs": 1, "sign": 1, "sqrt": 1, "reciprocal": 1, "exp": 1, "log": 1,
    "sin": 1, "cos": 1, "tanh": 1, "sigmoid": 1, "softplus": 1, "erf": 1, "floor": 1, "round": 1,
    "not": 1, "add": 2, "sub": 2, "mul": 2, "div": 2, "pow": 2, "max": 2, "min": 2,
    "gt": 2, "ge": 2, "lt": 2, "le": 2, "eq": 2, "ne": 2, "and": 2, "or": 2,
    "where": 3,  # condition, then, otherwise
    "leaky": 2,  # x, slope
    "leaky_grad": 3,  # grad_y, x, slope: grad_y where x > 0, slope * grad_y elsewhere
}  # fmt: skip
MAX_RANK = 6  # of a tensor that an operation reads or writes
MAX_INPUTS = 8  # of a pointwise operation
MAX_STEPS = 24
MAX_SOURCES = 4  # of a convolution


@dataclass(frozen=True)
class Kind:
    """The roles of one kind of operation; ``x*`` stands for x0, x1, ... as many as wanted."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    optional_outputs: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    optional_attributes: tuple[str, ...] = ()


_WINDOW = ("kernel", "strides", "pads")
_CONV = (*_WINDOW, "dilations", "group")
_SOURCES = ("x1", "x2", "x3")

KINDS: Mapping[str, Kind] = {
    "conv": Kind(
        ("x0", "weight"),
        (*_SOURCES, "bias", "add0", "add1", "post", "mask"),
        attributes=(*_CONV, "transposed", "slope", "mask_slope", "out_channels"),
        optional_attributes=("compute", "algorithm"),
    ),
    "pack_weights": Kind(
        ("weight",),
        attributes=(*_CONV, "transposed", "out_channels"),
        optional_attributes=("compute", "algorithm"),
    ),
    "pack_together": Kind((), ("weight*",), attributes=("parts",)),
    "conv_weight_grad": Kind(
        ("x0", "grad_y"),
        (*_SOURCES, "sum_weight", "sum_bias"),
        outputs=("weight",),
        optional_outputs=("bias",),
        attributes=(*_CONV, "bias_of"),
        optional_attributes=("compute", "scale", "algorithm"),
    ),
    "pointwise": Kind((), tuple(f"x{i}" for i in range(MAX_INPUTS)), attributes=("expression",)),
    "reduce": Kind(("x",), attributes=("how", "axes", "before", "after", "scale")),
    "matmul": Kind(("a", "b")),
    "resize": Kind(("x",), ("add",), attributes=("mode", "scale")),
    "resize_grad": Kind(("grad_y",), ("add",), attributes=("mode", "scale")),
    "avg_pool": Kind(("x",), attributes=_WINDOW),
    "avg_pool_grad": Kind(("grad_y",), ("add",), attributes=_WINDOW),
    "max_pool": Kind(("x",), attributes=(*_WINDOW, "dilations")),
    "max_pool_grad": Kind(("grad_y", "x"), attributes=(*_WINDOW, "dilations")),
    "pad": Kind(("x",), attributes=("pads", "mode", "value")),
    "pad_grad": Kind(("grad_y",), attributes=("pads", "mode")),
    "l1_loss": Kind(
        ("a", "b"),
        outputs=("value",),
        optional_outputs=("grad",),
        attributes=("value_scale", "grad_scale"),
    ),
    "concat": Kind(("x0",), ("x*",), attributes=("axis",)),
    "update_sgd": Kind(("weight", "grad"), outputs=("weight_new",), attributes=("step_size",)),
    "update_together": Kind(
        (),
        ("weight*", "grad*"),
        outputs=(),
        optional_outputs=("weight_new*",),
        attributes=("optimizer", "gradient_factor"),
    ),
}
