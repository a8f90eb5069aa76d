"""Losses without a reference that the inner steps may lower, beside the paper's.

The paper reconstructs the blurred input under L1 (Eq. 1). The others keep that task and change its
penalty, or add what a restored image should satisfy by itself:

l1          mean absolute error of the reconstruction at each scale: the paper
l2          mean squared error of it
charbonnier mean sqrt(error^2 + 1e-6) of it: L1 without the corner (Lai et al., CVPR 2017)
scales      l1, and the restored image made half as large against that of the coarser scale
again       l1, and the restored image restored again against itself: what is sharp should stay. In
            the spirit of self-supervised reblurring (Nah et al., ICLR 2022), which trains a second
            network to blur; this one takes the network itself, at the price of a second pass
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeadapt.errors import ConfigError
from edgeadapt.training.config import LOSSES
from edgeadapt.training.network import DeblurNet, Outputs
from edgeadapt.training.network_config import NetworkConfig

_CHARBONNIER = 1e-6  # the square of 1e-3, on images in [-1, 1]


def loss_terms(
    loss: str, network: DeblurNet, run: Callable[[Tensor], Outputs], image: Tensor
) -> Tensor:
    """The terms of ``loss`` for ``image`` (N, 3, H, W); their sum is what an inner step lowers.

    Args:
        loss: one of `LOSSES`.
        network: for its pyramid; with an auxiliary branch.
        run: the network with the weights to differentiate.
        image: blurred, in [-1, 1].

    Returns:
        (terms,): one a scale, then one for each pair of scales with "scales", one with "again".
    """
    outputs = run(image)
    if not outputs.reconstructed:
        raise ValueError("adaptation loss: this network was built with aux_branch = false")
    errors = [
        target - output
        for target, output in zip(network.pyramid(image), outputs.reconstructed, strict=True)
    ]
    terms = [_penalty(loss, error) for error in errors]
    if loss == "scales":
        finer, coarser = outputs.restored[:-1], outputs.restored[1:]
        pairs = zip(finer, coarser, strict=True)
        terms += [(F.avg_pool2d(fine, 2) - coarse).abs().mean() for fine, coarse in pairs]
    if loss == "again":
        restored = outputs.restored[0]
        terms.append((run(restored).restored[0] - restored).abs().mean())
    return torch.stack(terms)


class LossNet(DeblurNet):
    """The same network and weights, to be adapted by another loss."""

    def __init__(self, config: NetworkConfig, loss: str) -> None:
        if loss not in LOSSES:
            raise ConfigError(f"loss: must be {' | '.join(LOSSES)}, got {loss!r}.")
        super().__init__(config)
        self.loss = loss

    def adaptation_loss(self, image: Tensor) -> Tensor:
        """The terms of the loss it was made with: (terms,)."""
        return loss_terms(self.loss, self, self, image)


def build(loss: str, **options: Any) -> LossNet:
    """Build a network from a loss and the options of `NetworkConfig`; the factory bundles name."""
    return LossNet(NetworkConfig.from_options(options), loss)


def _penalty(loss: str, error: Tensor) -> Tensor:
    if loss == "l2":
        return error.square().mean()
    if loss == "charbonnier":
        return (error.square() + _CHARBONNIER).sqrt().mean()
    return error.abs().mean()
