"""The calls with which cuDNN computes a convolution or a weight gradient, and what is left of it.

A weight gradient lies in cuDNN's order and is one scale's: an own launch brings it into the order
of the parameter, adds it to what is there, and sums an image over pixels for the bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeadapt.kernels.cuda.conv_weight_grad import from_channels_last
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.runtime.cuda.cudnn_conv import Convolution
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, Cudnn, CudnnCall

_ALIGNMENT = 256  # of scratch memory


@dataclass(frozen=True)
class Gradients:
    """Where a weight gradient goes: the parameters', and the image that is summed for the bias."""

    weight: TensorArgs
    bias: TensorArgs | None = None
    of: ImageArgs | None = None
    add_weight: bool = False
    add_bias: bool = False


@dataclass(frozen=True)
class CudnnWork:
    """Calls in order, and the device memory that they need meanwhile."""

    calls: tuple[CudnnCall | Launch, ...]
    scratch_bytes: int


def convolution_work(
    cudnn: Cudnn, what: Convolution, plan: BuiltPlan, addresses: Mapping[str, int], scratch: int
) -> CudnnWork:
    """A convolution, or the gradient of one in its input; ``addresses`` are by role."""
    call = cudnn.call(what, plan, addresses, scratch)
    return CudnnWork((call,), plan.workspace_bytes)


def weight_grad_work(
    cudnn: Cudnn,
    what: Convolution,
    plan: BuiltPlan,
    addresses: Mapping[str, int],
    gradients: Gradients,
    scratch: int,
) -> CudnnWork:
    """A weight gradient; ``addresses`` are those of x and grad_y."""
    products, workspace = scratch, scratch + _aligned(what.span_bytes("weight"))
    parts = workspace + _aligned(plan.workspace_bytes)
    call = cudnn.call(what, plan, {**addresses, "weight": products}, workspace)
    work = from_channels_last(
        products,
        gradients.weight,
        gradients.bias,
        gradients.of,
        add_weight=gradients.add_weight,
        add_bias=gradients.add_bias,
        scratch=parts,
    )
    return CudnnWork((call, *work.launches), parts - scratch + work.scratch_bytes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
