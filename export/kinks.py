"""Where the derivatives of PyTorch's operators jump."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _lead(x: Tensor, dims: Sequence[int] = (), keepdim: bool = False) -> list[Tensor]:
    """By how much the largest value over ``dims`` (all if empty) exceeds the second."""
    axes = [dim % x.dim() for dim in dims] or list(range(x.dim()))
    rows = x.permute([dim for dim in range(x.dim()) if dim not in axes] + axes)
    return _gaps(rows.flatten(x.dim() - len(axes)))


def _lead_in_windows(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> list[Tensor]:
    """The same for every window of a max pooling of ``x`` (N, C, H, W)."""
    steps, (high, wide) = _pair(stride or kernel), _pair(padding)
    # Windows that ceil_mode adds, or that lie in the padding alone, are NaN or infinite: no kinks.
    more = [step - 1 if ceil_mode else 0 for step in steps]
    padded = F.pad(x, (wide, wide + more[1], high, high + more[0]), value=float("-inf"))
    windows = F.unfold(padded, _pair(kernel), _pair(dilation), 0, steps)
    return _gaps(windows.reshape(*x.shape[:2], -1, windows.shape[2]).transpose(2, 3))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Along height and width; PyTorch takes one number for both."""
    return values[0], values[-1]


def _gaps(rows: Tensor) -> list[Tensor]:
    """Largest less second of each row; NaN for equal ones, such as the zeros behind a ReLU, which
    are equal without any rounding and share their derivative.
    """
    if rows.shape[-1] < 2:
        return []
    first, second = rows.topk(2, dim=-1).values.unbind(-1)
    gap = first - second
    return [torch.where(gap == 0, torch.nan, gap)]


# Operators whose derivative jumps -> the values whose zero is where it does.
KINKS: dict[str, Callable[..., list[Tensor]]] = {
    "aten.abs.default": lambda x: [x],
    "aten.relu.default": lambda x: [x],
    "aten.leaky_relu.default": lambda x, slope=0.01: [x],
    "aten._prelu_kernel.default": lambda x, slope: [x],
    "aten.clamp.default": lambda x, min=None, max=None: [
        x - bound for bound in (min, max) if bound is not None
    ],
    "aten.clamp_min.default": lambda x, min: [x - min],
    "aten.clamp_max.default": lambda x, max: [x - max],
    "aten.hardtanh.default": lambda x, low=-1.0, high=1.0: [x - low, x - high],
    "aten.hardsigmoid.default": lambda x: [x - 3, x + 3],
    "aten.hardswish.default": lambda x: [x - 3, x + 3],
    "aten.maximum.default": lambda x, y: [x - y],
    "aten.minimum.default": lambda x, y: [x - y],
    "aten.amax.default": _lead,
    "aten.amin.default": lambda x, dims=(), keepdim=False: _lead(-x, dims),
    "aten.max_pool2d_with_indices.default": _lead_in_windows,
}
