"""Networks around operators that work pixel by pixel, on channels, or on whole tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.exporting import Around, Sum

Make = Callable[[], nn.Module]
NETWORKS: dict[str, Make] = {}


def network(make: Make) -> Make:
    """Register a network under the name of the function that makes it."""
    NETWORKS[make.__name__] = make
    return make


def around(*pieces: Callable[[Tensor], Tensor], channels: int = 6, after: int | None = None):
    return Around(Sum(*pieces), channels, after)


@network
def smooth_activations() -> nn.Module:
    return around(
        torch.sigmoid,
        torch.tanh,
        F.silu,
        F.gelu,
        lambda x: F.gelu(x, approximate="tanh"),
        F.softplus,
        F.elu,
        lambda x: F.elu(x, 0.7),
        F.selu,
        F.mish,
        F.logsigmoid,
    )


@network
def activations_with_a_kink() -> nn.Module:
    return around(
        F.relu,
        F.relu6,
        F.leaky_relu,
        lambda x: F.leaky_relu(x, 0.3),
        F.hardtanh,
        lambda x: F.hardtanh(x, -0.2, 0.9),
        F.hardswish,
        F.hardsigmoid,
        lambda x: torch.clamp(x, -0.4, 0.6),
        lambda x: torch.clamp(x, min=0.1),
        lambda x: torch.clamp(x, max=0.2),
        lambda x: x.clamp_min(-0.1),
        torch.abs,
    )


@network
def learned_slopes() -> nn.Module:
    return around(nn.PReLU(6), nn.PReLU())


@network
def in_place() -> nn.Module:
    return around(
        lambda x: F.leaky_relu(1.0 * x, 0.2, inplace=True),
        lambda x: (1.0 * x).add_(0.5).mul_(x),
        lambda x: F.relu(x + 0.1, inplace=True),
    )


@network
def arithmetic() -> nn.Module:
    return around(
        lambda x: 1.5 - x,
        lambda x: x - 0.25 * x**3,
        lambda x: torch.add(x, x.square(), alpha=0.3),
        lambda x: torch.sub(x, x.square(), alpha=0.3),
        lambda x: -x / (1.0 + x.square()),
        lambda x: 1.0 / (2.0 + torch.tanh(x)),
        lambda x: (x.square() + 0.1) ** 0.75,
        lambda x: x / 3,
        lambda x: torch.rsub(x, x.square(), alpha=2),
        lambda x: torch.ops.aten.sub.Scalar(x.square(), 0.5, 2),
        lambda x: torch.ops.aten.alias(x.square()),
    )


@network
def functions() -> nn.Module:
    return around(
        torch.sin,
        torch.cos,
        lambda x: torch.exp(0.3 * x),
        lambda x: torch.expm1(0.3 * x),
        lambda x: torch.log(1.1 + x.square()),
        lambda x: torch.log1p(x.square()),
        lambda x: torch.sqrt(x.square() + 0.01),
        lambda x: torch.rsqrt(x.square() + 0.1),
        lambda x: torch.reciprocal(x.square() + 0.5),
        torch.erf,
        torch.square,
    )


@network
def comparisons() -> nn.Module:
    return around(
        lambda x: torch.where(x > 0.1, x, 0.2 * x),
        lambda x: torch.where(x[:, :1] >= x[:, 1:2], x, 0.5),
        lambda x: torch.where(x < 0, 0.3, x * x),
        lambda x: torch.where(torch.logical_not(x <= -0.2), x, -x),
        lambda x: torch.where((x > -0.3) & (x < 0.4), x, 0.0),
        lambda x: torch.where((x < -0.3) | (x > 0.4), x, 0.0),
        lambda x: torch.where(torch.logical_and(x > -0.3, x != 0.4), x, 0.0),
        lambda x: torch.where(torch.logical_or(x < -0.3, x == 0.4), x, 0.0),
        lambda x: torch.where(~(x > 0.5), x, 0.0),
        lambda x: x * (x > 0.2),
        lambda x: x.masked_fill(x > 0.3, 0.3),
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: torch.minimum(x, 0.5 * x.flip(1)),
        lambda x: torch.where((x <= x.flip(1)) | (x != x.flip(2)), x, 0.0),
        lambda x: x * torch.sign(x),
        lambda x: x * torch.floor(x) + x * torch.round(2 * x),
    )


@network
def attention_over_channels() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.excite = nn.Linear(6, 3), nn.Conv2d(3, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.squeeze(x.mean((2, 3))))
            return x * torch.sigmoid(self.excite(y[:, :, None, None]))

    return around(
        Attention(),
        lambda x: x * F.adaptive_avg_pool2d(x, 1),
        lambda x: x * x.mean(1, keepdim=True).unsqueeze(2).squeeze(2),
        lambda x: x * x.sum(1, keepdim=True) / x.shape[1],
        lambda x: x - x.mean(),
        lambda x: x / (1.0 + x.amax((2, 3), keepdim=True) - x.amin((2, 3), keepdim=True)),
    )


@network
def normalisations() -> nn.Module:
    class OverChannels(nn.Module):
        """Layer norm of every pixel, as in NAFNet (Chen et al. 2022)."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.mean(1, keepdim=True)
            normal = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
            return self.weight.view(1, -1, 1, 1) * normal + self.bias.view(1, -1, 1, 1)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return around(
        OverChannels(),
        Last(),
        nn.GroupNorm(2, 6),
        nn.InstanceNorm2d(6, affine=True),
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
        lambda x: x / (0.1 + x.abs().sum(1, keepdim=True) + torch.linalg.vector_norm(x, 1)),
        lambda x: x / (x.var(1, keepdim=True, unbiased=False) + 1e-3).sqrt(),
        lambda x: x * x.var((2, 3), keepdim=True) / (0.1 + x.std()),
    )


@network
def batch_norm() -> nn.Module:
    # In eval mode: the statistics are buffers.
    made = around(nn.BatchNorm2d(6), nn.Dropout(0.5))
    norm = made.piece.pieces[0]
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2.0)
    return made


@network
def tensors_made_on_the_way() -> nn.Module:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weights", torch.linspace(0.1, 1.0, 6).view(1, 6, 1, 1))
            self.register_buffer("index", torch.arange(6))

        def forward(self, x: Tensor) -> Tensor:
            kernel = torch.tensor([[1.0, 2.0, 1.0]]) / 4
            blur = kernel.to(x).expand(6, 1, 1, 3)
            ramp = (self.index / 4).view(1, -1, 1, 1)  # integers divide to fractions
            y = F.conv2d(x * self.weights, blur, padding=(0, 1), groups=6) * ramp
            y = y + torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 0.3)
            shape = (x.shape[0], 1, x.shape[2], x.shape[3])
            mask = torch.full(shape, 0.7) + torch.ones(shape) + torch.zeros(shape)
            return y * mask * torch.scalar_tensor(0.5)

    return around(Made(), lambda x: x.detach() * x, lambda x: x.clone().contiguous().float())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "charbonnier": lambda x, y: torch.sqrt((x - y) ** 2 + 1e-6).mean(),
    "sum": lambda x, y: (x - y).abs().sum() / x.numel(),
    "total variation": lambda x, y: (x - y).diff(dim=3).square().mean(),
}


class EveryLoss(Around):
    def adaptation_loss(self, image: Tensor) -> Tensor:
        restored = self.restore(image)
        again = self.auxiliary(torch.cat([restored, image], 1))
        return torch.stack([loss(again, image) for loss in LOSSES.values()])


@network
def losses() -> nn.Module:
    return EveryLoss(torch.tanh)


class Odd(Around):
    """The loss does not depend on one parameter, so its gradient is in no graph."""

    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.offset = nn.Parameter(torch.tensor(0.25))  # also: a parameter without dimensions
        # Names that values of a graph could have too.
        self.c0, self.c1 = nn.Parameter(torch.tensor(0.75)), nn.Parameter(torch.ones(3, 1, 1))
        self.mul = nn.ParameterList([nn.Parameter(torch.ones(1, 1)) for _ in range(3)])

    def restore(self, image: Tensor) -> Tensor:
        scale = self.c0 * self.mul[0] * self.mul[1] + self.mul[2]
        return super().restore(image) * scale + 0.1 * self.c1

    def adaptation_loss(self, image: Tensor) -> Tensor:
        return super().adaptation_loss(image)[:1]


@network
def odd_parameters() -> nn.Module:
    return Odd()
