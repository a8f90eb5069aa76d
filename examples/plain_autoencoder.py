"""A small network that can be exported and adapted: an encoder-decoder with its own auxiliary loss.

Its primary head predicts a correction; its auxiliary head must bring the corrected image back to
the input, so the loss needs no label. Nothing in it is shared with edgeadapt's own network.

    edgeadapt export examples/plain_autoencoder.py:PlainAutoencoder -o plain.bundle --step-size 1e-2
    edgeadapt run plain.bundle photo.jpg -o restored
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainAutoencoder(nn.Module):
    """Encoder-decoder with sigmoid-gated features, a primary and an auxiliary head."""

    size_multiple = 4

    def __init__(self, width: int = 12, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.gate = nn.Conv2d(2 * width, 2 * width, 1)
        self.decoder = nn.Conv2d(2 * width, width, 3, padding=1)
        self.primary = nn.Conv2d(width, 3, 3, padding=1)
        self.auxiliary = nn.Conv2d(6, 3, 3, padding=1)

    def restore(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same shape."""
        features = self.encoder(image)
        features = self.decoder(features * torch.sigmoid(self.gate(features)))
        return image + 0.1 * self.primary(F.interpolate(features, scale_factor=4, mode="bilinear"))

    def adaptation_loss(self, image: Tensor) -> Tensor:
        """Squared error of the auxiliary head, in pixels and after halving: (2,)."""
        restored = self.restore(image)
        error = self.auxiliary(torch.cat([restored, restored - image], 1)) - image
        return torch.stack([error.square().mean(), F.avg_pool2d(error, 2).square().mean()])

    def parameter_groups(self) -> dict[str, list[str]]:
        """Trunk and heads."""
        names = [name for name, _ in self.named_parameters()]
        heads = {
            head: [n for n in names if n.startswith(head)] for head in ("primary", "auxiliary")
        }
        return {"shared": [n for n in names if not n.startswith(tuple(heads))], **heads}
