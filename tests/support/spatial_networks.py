"""Networks around operators that look at neighbours or move pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.pointwise_networks import around, network


class Lambda(nn.Module):
    """A function of a tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@network
def slices_and_joins() -> nn.Module:
    def shifted(x: Tensor) -> Tensor:
        return torch.cat([x[..., 1:, :], x[..., :1, :]], 2)

    def interleaved(x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], x[:, 1::2]], 1)

    def halved(x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([first * second, first.sin(), second], 1)[:, :6]

    def in_parts(x: Tensor) -> Tensor:
        a, b, c = x.split([1, 3, 2], 1)
        d, e, f = x.split(2, 1)
        return torch.cat([b, a, c], 1) + torch.cat([f, d * e, e], 1)

    def stacked(x: Tensor) -> Tensor:
        both = torch.stack([x[:, 0], x[:, -1].square(), x.select(1, 2)], 1)
        return torch.cat([both, both.flip(1, 3)], 1)

    def repeated(x: Tensor) -> Tensor:
        return x[:, :2].repeat(1, 3, 1, 1) + x[:, 3:4].expand(-1, 6, -1, -1)

    def by_rows(x: Tensor) -> Tensor:
        top, bottom = x.chunk(2, 2)
        a, b = x.split([3, x.shape[2] - 3], 2)
        edges = x[:, :, 2].unsqueeze(2) - x[..., -2][..., None]
        tail = torch.cat([x[:, :, -8:], x[:, -3:].repeat(1, 2, 1, 1)], 2)[:, :, 8:]
        late = F.pad(x[..., x.shape[3] // 2 :: 2].cos(), (0, x.shape[3] * 3 // 4))
        return torch.cat([bottom, top], 2) + torch.cat([b.sin(), a], 2) * edges + tail * late

    return around(shifted, interleaved, halved, in_parts, stacked, repeated, by_rows)


@network
def differences_and_rolls() -> nn.Module:
    return around(
        lambda x: F.pad(x[..., 1:] - x[..., :-1], (0, 1)),
        lambda x: F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 1, 0), value=0.3),
        lambda x: torch.roll(x, (2, -1), (3, 2)),
        lambda x: F.pixel_shuffle(x[:, :, 1::2, ::2].repeat(1, 4, 1, 1), 2),
        lambda x: x[:, :, 2:-2, 1:-1].mean((2, 3), keepdim=True) * x,
    )


@network
def shuffles() -> nn.Module:
    def there_and_back(x: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.tanh(F.pixel_unshuffle(x, 2)).flip(1), 2)

    def transposed(x: Tensor) -> Tensor:
        return x.transpose(2, 3).square().transpose(-1, -2) + x.permute(0, 2, 3, 1).sin().permute(
            0, 3, 1, 2
        )

    def mixed(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def in_windows(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        windows = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5)
        centred = windows - windows.mean((-2, -1), keepdim=True)
        return centred.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)

    return around(there_and_back, transposed, mixed, in_windows)


@network
def paddings() -> nn.Module:
    def between(*pads: int) -> tuple[slice, slice]:
        left, right, top, bottom = pads
        return slice(top, -bottom or None), slice(left, -right or None)

    def padded(mode: str, *pads: int) -> nn.Module:
        # Blurred while padded: a plain crop would undo the padding and leave nothing to test.
        rows, columns = between(*pads)
        return Lambda(
            lambda x: F.avg_pool2d(F.pad(x, pads, mode).cos(), 3, 1, 1)[:, :, rows, columns]
        )

    return around(
        padded("reflect", 2, 1, 3, 4),
        padded("reflect", 3, 0, 0, 2),
        padded("replicate", 1, 3, 2, 1),
        padded("replicate", 0, 2, 4, 0),
        padded("constant", 1, 3, 2, 1),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 6, 5, padding=2, padding_mode="replicate"),
        nn.Conv2d(6, 6, 3, padding="same"),
    )


@network
def attention_over_pixels() -> nn.Module:
    class Transposed(nn.Module):
        """Attention between channels, as in Restormer (Zamir et al. 2022)."""

        def __init__(self) -> None:
            super().__init__()
            self.three, self.temperature = nn.Conv2d(6, 18, 1), nn.Parameter(torch.ones(2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            n, _, h, w = x.shape
            q, k, v = (t.reshape(n, 2, 3, h * w) for t in self.three(x).chunk(3, 1))
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
            return (weights @ v).reshape(n, 6, h, w)

    return around(Transposed(), lambda x: F.softmax(x, 1), lambda x: F.log_softmax(x, 1))


@network
def convolutions() -> nn.Module:
    return around(
        nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 6, 5, padding=2, bias=False),
        nn.Conv2d(6, 6, (3, 1), padding=(1, 0)),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),
        nn.Conv2d(6, 6, 3, padding=1, groups=2),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
    )


@network
def strided_and_transposed_convolutions() -> nn.Module:
    def there_and_back(down: nn.Module, up: nn.Module) -> nn.Module:
        return nn.Sequential(down, nn.Tanh(), up)

    return around(
        there_and_back(nn.Conv2d(6, 4, 3, 2, 1), nn.ConvTranspose2d(4, 6, 4, 2, 1)),
        there_and_back(nn.Conv2d(6, 4, 2, 2), nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1)),
        there_and_back(
            nn.Conv2d(6, 4, 4, 4, groups=2), nn.ConvTranspose2d(4, 6, 4, 4, groups=2, bias=False)
        ),
        there_and_back(nn.Conv2d(6, 2, 3, padding=1), nn.ConvTranspose2d(2, 6, 3, 1, 1)),
        there_and_back(nn.Conv2d(6, 2, 1), nn.ConvTranspose2d(2, 6, 3, 1, padding=2, dilation=2)),
    )


@network
def pools_and_resizes() -> nn.Module:
    def up(y: Tensor, scale: int, mode: str) -> Tensor:
        return F.interpolate(y, scale_factor=scale, mode=mode)

    return around(
        lambda x: up(F.avg_pool2d(x, 2).sin(), 2, "bilinear"),
        lambda x: up(F.avg_pool2d(x, 4), 4, "nearest"),
        lambda x: F.avg_pool2d(x, 3, 1, 1).square(),
        lambda x: up(F.max_pool2d(x, 2), 2, "nearest"),
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.interpolate(F.max_pool2d(x, 2), x.shape[2:], mode="nearest"),
        nn.Sequential(
            nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        ),
        nn.Sequential(nn.AvgPool2d(8), nn.UpsamplingNearest2d(scale_factor=8)),
        lambda x: up(F.interpolate(x, scale_factor=0.5, mode="bilinear").square(), 2, "bilinear"),
        lambda x: up(F.interpolate(x, scale_factor=0.5).square(), (2, 2), "nearest"),
    )


@network
def sizes_in_the_arithmetic() -> nn.Module:
    def area(x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        return x * ((h * w + h - 1) // 8) / (h * w) + x.flatten(2).sum(2)[..., None, None] / (h + w)

    return around(area, lambda x: x / x.numel() ** 0.5 if False else x * (x[0, 0].numel() / 100))
