"""What PyTorch's own counter finds that a network computes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

_BACKWARD = torch.ops.aten.convolution_backward


class Counts(NamedTuple):
    """FLOPs of convolutions and matrix products."""

    forward: int
    backward: int


def count(
    network: Any, height: int, width: int, parameters: Collection[str], grouped: bool = False
) -> Counts:
    """By `torch.utils.flop_counter`, of the adaptation loss and of its backward pass to these
    ``parameters``.

    That counter takes a weight's gradient for dense whatever the groups, ``groups`` times as much
    as there is to do. ``grouped`` puts that right; it is for networks that have such layers.
    """
    network.eval()
    for name, value in network.named_parameters():
        value.requires_grad_(name in parameters)
    image = torch.rand(1, 3, height, width) * 2 - 1
    with FlopCounterMode(display=False) as forward:
        loss = network.adaptation_loss(image).sum()
    corrected = {_BACKWARD: _backward_by_groups} if grouped else None
    with FlopCounterMode(display=False, custom_mapping=corrected) as backward:
        loss.backward()
    return Counts(forward.get_total_flops(), backward.get_total_flops())


def _backward_by_groups(*arguments: Any, out_shape: Any, **others: Any) -> int:
    """PyTorch's formula, the weight's gradient divided by the groups."""
    *given, mask = arguments
    groups = given[-1]
    image, weight, _ = mask
    of_image = conv_backward_flop(*given, [image, False, False], out_val=out_shape)
    of_weight = conv_backward_flop(*given, [False, weight, False], out_val=out_shape)
    return int(of_image) + int(of_weight) // int(groups)
