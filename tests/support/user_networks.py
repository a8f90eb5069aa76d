"""Networks as users bring them, in the styles of the field."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def charbonnier(y: Tensor, x: Tensor) -> Tensor:
    return torch.sqrt((y - x) ** 2 + 1e-3).mean()


class Network(nn.Module):
    """Two heads on a body that gives eight channels."""

    size_multiple = 8

    def __init__(self, body: nn.Module, loss: Loss = charbonnier) -> None:
        super().__init__()
        self.body, self.loss = body, loss
        self.primary = nn.Conv2d(8, 3, 3, padding=1)
        self.auxiliary = nn.Conv2d(11, 3, 3, padding=1)

    def features(self, image: Tensor) -> Tensor:
        return self.body(image)

    def restore(self, image: Tensor) -> Tensor:
        return image + self.primary(self.features(image))

    def adaptation_loss(self, image: Tensor) -> Tensor:
        features = self.features(image)
        again = self.auxiliary(torch.cat([features, self.primary(features)], 1))
        return torch.stack([self.loss(again, image)])

    def parameter_groups(self) -> dict[str, list[str]]:
        return {"shared": [name for name, _ in self.named_parameters()]}


class ChannelNorm(nn.Module):
    """LayerNorm over channels, as NAFNet has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normal = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight.view(1, -1, 1, 1) * normal + self.bias.view(1, -1, 1, 1)


class SimpleGateBlock(nn.Module):
    """Depthwise convolution, gate, channel attention, scaled residual: NAFNet's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.expand = ChannelNorm(width), nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))
        self.project = nn.Conv2d(width, width, 1)
        self.beta = nn.Parameter(torch.full((1, width, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.depthwise(self.expand(self.norm(x))).chunk(2, 1)
        gated = first * second
        return x + self.project(gated * self.attention(gated)) * self.beta


class TransposedAttention(nn.Module):
    """Attention across channels, as Restormer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(3, 24, 1)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        parts = self.qkv(x).chunk(3, 1)
        q, k, v = (part.reshape(n, 2, 4, height * width) for part in parts)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return ((scores * self.temperature).softmax(-1) @ v).reshape(n, 8, height, width)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class Resampling(nn.Module):
    """Enlarges to a size, shuffles pixels, rolls."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.fold = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(self.down(x), size=x.shape[2:], mode="bilinear")
        folded = F.interpolate(self.fold(F.pixel_unshuffle(x, 2)), scale_factor=2)
        return torch.cat([enlarged, torch.roll(folded, (1, -2), (2, 3))], 1)


def conv(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *between, nn.Conv2d(8, 8, 3, padding=1))


BODIES: dict[str, Callable[[], nn.Module]] = {
    "simple gates": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        SimpleGateBlock(8),
        nn.Conv2d(8, 16, 2, 2),
        SimpleGateBlock(16),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.PixelShuffle(2),
    ),
    "transposed attention": TransposedAttention,
    "squeeze and excite": lambda: nn.Sequential(conv(nn.GELU()), SqueezeExcite()),
    "resampling": Resampling,
    "PReLU": lambda: conv(nn.PReLU(8), nn.PReLU()),
    "batch norm": lambda: conv(nn.BatchNorm2d(8), nn.SiLU(inplace=True)),
    "instance norm": lambda: conv(nn.InstanceNorm2d(8, affine=True), nn.Tanh()),
    "group norm": lambda: conv(nn.GroupNorm(2, 8), nn.GELU()),
    "max pooling": lambda: conv(nn.MaxPool2d(2), nn.ELU(), nn.Upsample(scale_factor=2)),
    "average pooling": lambda: conv(nn.AvgPool2d(2), nn.SELU(), nn.Upsample(scale_factor=2)),
    "reflection": lambda: nn.Sequential(nn.ReflectionPad2d((2, 1, 0, 1)), nn.Conv2d(3, 8, (2, 4))),
    "replication": lambda: nn.Sequential(
        nn.ReplicationPad2d((2, 1, 0, 1)), nn.Conv2d(3, 8, (2, 4))
    ),
    "reflecting convolution": lambda: conv(nn.Conv2d(8, 8, 5, padding=2, padding_mode="reflect")),
    "same padding": lambda: conv(nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.Mish()),
    "more padding than a kernel reaches": lambda: conv(
        nn.Conv2d(8, 8, 1, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3)
    ),
    "in place": lambda: conv(nn.LeakyReLU(0.2, inplace=True), nn.Softplus(), nn.Hardswish(True)),
    "dropout": lambda: conv(nn.Dropout(0.5), nn.LogSigmoid()),
}

LOSSES: dict[str, Loss] = {
    "L1": F.l1_loss,
    "MSE": F.mse_loss,
    "smooth L1": F.smooth_l1_loss,
    "Huber and total variation": lambda y, x: (
        F.huber_loss(y, x) + (y[..., 1:] - y[..., :-1]).abs().mean()
    ),
}
