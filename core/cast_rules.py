"""In what each operator of ONNX may compute when a graph is brought to 16 bits, and why.

float16 has 11 bits of mantissa and ends at 65504; below 6.1e-5 it loses bits, below 6e-8 all of
them. bfloat16 has the range of float32 and 8 bits. So what is safe in 16 bits is decided by the
operator: what multiplies with weights, what moves values, and what cannot leave the range of its
arguments. Whatever is not in the table stays in float32.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

Precision = Literal["fp32", "fp16", "bf16"]


class Rule(Enum):
    """How the type of a result follows from the operator and its arguments."""

    # In 16 bits: of a fixed number of products with weights, and where the time goes. A product of
    # two values that both depend on the image is not: the number of its terms may grow with the
    # image, as in the gradient of a weight, which is a sum over all pixels.
    PRODUCT = "product"
    # Values are moved, so that it is exact in either type: in 16 bits if the argument is, or if
    # everything that follows will round it anyway.
    MOVE = "move"
    # Of one activation, and no larger than it (or 1): in 16 bits if the activation is.
    BOUNDED = "bounded"
    # In float32 as soon as one activation is: rounding what is added to a float32 value would cost
    # the bits that it was kept for. An image plus its residual is such a sum.
    MIXED = "mixed"
    # Float32 always.
    WIDE = "wide"
    # Reads sizes, so any type will do.
    SIZE = "size"


_OPERATORS = {
    Rule.PRODUCT: "Conv ConvTranspose Gemm MatMul",
    Rule.MOVE: "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad "
    "Reshape ReverseSequence Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze",
    # A pool or a resize averages a few neighbours with weights that sum to 1.
    Rule.BOUNDED: "Abs AveragePool Clip HardSigmoid LeakyRelu MaxPool Neg PRelu Relu Resize "
    "Sigmoid Sign Tanh",
    Rule.MIXED: "Add Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Sub Sum Where",
    # Sums of as many terms as there are pixels or channels, with the normalisations made of them:
    # 65504 is passed by 66,000 values of 1, and in bfloat16 a sum stops growing at 256 ones.
    # Exponentials, powers and quotients: exp(12), 256 ^ 2 and 1 / 1e-5 are all beyond 65504, and
    # what keeps a divisor from zero (1e-6) is too small. Erf is added to 1, and cancels there.
    Rule.WIDE: "BatchNormalization Ceil CumSum Div Elu Erf Exp Floor Gelu GlobalAveragePool "
    "GroupNormalization HardSwish InstanceNormalization LayerNormalization Log LogSoftmax "
    "LpNormalization Mish Mod Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax "
    "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Selu Softmax Softplus Sqrt",
    Rule.SIZE: "Shape Size",
}
RULES = {name: rule for rule, names in _OPERATORS.items() for name in names.split()}

# Smallest and largest magnitude that a constant may have, zero apart, to be used in 16 bits.
LIMITS = {"fp16": (2.0**-14, 65504.0), "bf16": (2.0**-126, 3.3e38)}

# How results follow a factor in front of the gradients (`edgeadapt.cast_factor`): equal to that of
# the arguments, which must agree; the sum of them; or no factor at all may come in.
_LINEAR = (
    "Abs Add AveragePool Concat DepthToSpace Equal Expand Flatten Gather GatherElements GatherND "
    "Greater GreaterOrEqual Identity LeakyRelu Less LessOrEqual Max MaxPool Min Neg Pad Relu "
    "Reshape Resize ReverseSequence Slice SpaceToDepth Split Squeeze Sub Sum Tile Transpose "
    "Unsqueeze Where"
)
LINEAR = frozenset(_LINEAR.split())
BILINEAR = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "PRelu"])


def rule_of(operator: str, domain: str) -> Rule:
    """The rule for an operator; what is not in the table is `Rule.WIDE`."""
    return RULES.get(operator, Rule.WIDE) if domain in ("", "ai.onnx") else Rule.WIDE
