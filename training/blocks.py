"""The layers the U-Net is made of.

No normalisation layers anywhere (paper, section 3.1), so batch size 1 is safe.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeadapt.training.network_config import NetworkConfig


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (divided by ``stride``)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def stem(inputs: int, outputs: int, config: NetworkConfig) -> nn.Conv2d:
    """The convolution that images enter through: (N, C, H, W) -> (N, C', H / s, W / s), s being
    the stem's stride.
    """
    stride = config.stem_stride
    if stride == 1:
        return conv(inputs, outputs, config.kernel)
    return nn.Conv2d(inputs, outputs, 2 * stride, stride, stride // 2)


def head(inputs: int, config: NetworkConfig) -> nn.Conv2d | nn.ConvTranspose2d:
    """The layer that an RGB image leaves through, at the size it had before the stem."""
    stride = config.stem_stride
    if stride == 1:
        return conv(inputs, 3, config.kernel)
    return nn.ConvTranspose2d(inputs, 3, 2 * stride, stride, stride // 2)


class ResidualBlock(nn.Module):
    """x + conv(LeakyReLU(conv(x))): Nah's ResBlock, with the paper's activation."""

    def __init__(self, width: int, config: NetworkConfig) -> None:
        super().__init__()
        self.first = conv(width, width, config.kernel)
        self.second = conv(width, width, config.kernel)
        self.slope = config.slope

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + cast(Tensor, self.second(F.leaky_relu(self.first(x), self.slope)))


class ResidualBlocks(nn.Sequential):
    """``config.blocks`` residual blocks in a row."""

    def __init__(self, width: int, config: NetworkConfig) -> None:
        super().__init__(*(ResidualBlock(width, config) for _ in range(config.blocks)))


class EncoderLevel(nn.Module):
    """Opening convolution (the stem, or one of stride 2 below the first level), the recurrent
    feature merged in, residual blocks.
    """

    def __init__(self, level: int, config: NetworkConfig) -> None:
        super().__init__()
        width = config.widths[level]
        self.first = level == 0
        self.config = config
        self.open = (
            stem(6, width, config)  # the blurry image and the coarser estimate, RGB each
            if self.first
            else conv(config.widths[level - 1], width, config.kernel, 2)
        )
        self.merge = conv(2 * width, width, 1) if config.feature_recurrence else None
        self.blocks = ResidualBlocks(width, config)

    def forward(self, x: Tensor, recurrent: Tensor | None) -> Tensor:
        """``recurrent`` has this level's shape; None at the coarsest scale."""
        x = self.open(x)
        if not self.first:
            x = F.leaky_relu(x, self.config.slope)
        if self.merge is not None:
            if recurrent is None:
                recurrent = (
                    x if self.config.recurrence_start == "duplicate" else torch.zeros_like(x)
                )
            x = self.merge(torch.cat([x, recurrent], 1))
        return cast(Tensor, self.blocks(x))


class UpBlock(nn.Module):
    """Transposed convolution 4x4 stride 2 (SRN, MT-RNN), then the encoder's feature joins."""

    def __init__(self, level: int, config: NetworkConfig) -> None:
        super().__init__()
        width = config.widths[level]
        self.deconv = nn.ConvTranspose2d(config.widths[level + 1], width, 4, 2, 1)
        self.merge = conv(2 * width, width, 1) if config.skip == "cat" else None
        self.slope = config.slope

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C', H / 2, W / 2) and the skip (N, C, H, W) -> (N, C, H, W)."""
        x = F.leaky_relu(self.deconv(x), self.slope)
        return x + skip if self.merge is None else cast(Tensor, self.merge(torch.cat([x, skip], 1)))


def gaussian_half(image: Tensor) -> Tensor:
    """Half the size after a 5-tap binomial filter, edges repeated: (N, C, H, W) -> (N, C, H / 2, W
    / 2).
    """
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=image.dtype, device=image.device) / 16
    channels = image.shape[1]
    kernel = torch.outer(taps, taps).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), "replicate"), kernel, stride=2, groups=channels)
