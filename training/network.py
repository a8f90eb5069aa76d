"""The two-branch multi-scale recurrent U-Net of Chi et al. (CVPR 2021, section 3.1), with every
switch of its ablations.

The paper fixes the scheme and leaves the sizes unsaid; ``training/network_config.py`` names each
choice and its source."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeadapt.training.blocks import (
    EncoderLevel,
    ResidualBlocks,
    UpBlock,
    conv,
    gaussian_half,
    head,
    stem,
)
from edgeadapt.training.config import PAPER_LOSS
from edgeadapt.training.network_config import NetworkConfig

# Half a logarithm of squares is one of absolute values; a twentieth of that falls as fast as L1
# does where L1 is 0.05, its value in the training of the networks that ship.
_PSNR_WEIGHT = 0.5 / 20
_PSNR_FLOOR = 1e-5  # of images in [-1, 1]: 56 dB, beyond which nothing is to be gained


class Outputs(NamedTuple):
    """What one forward pass gives, finest scale first; each entry is (N, 3, H / 2^z, W / 2^z)."""

    restored: tuple[Tensor, ...]  # blurry image + residual, not clamped
    reconstructed: tuple[
        Tensor, ...
    ]  # the blurry image again; empty when there is no auxiliary branch


class State(NamedTuple):
    """What flows through the units of one scale."""

    x: Tensor
    skips: tuple[Tensor, ...]  # encoder features, finest first
    features: tuple[
        Tensor, ...
    ]  # decoder features F_L ... F_1, coarsest first (paper, section 3.1)


class ScaleNet(nn.Module):
    """The U-Net of one scale: shared units, a primary and an auxiliary tower with a head each."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        units = list(_unit_names(config))
        branch = config.branch_index
        width = config.widths[0]
        self.shared = nn.ModuleDict({name: _unit(name, config) for name in units[:branch]})
        self.primary = nn.ModuleDict({name: _unit(name, config) for name in units[branch:]})
        self.primary["head"] = head(width, config)
        if config.aux_branch:
            self.auxiliary = nn.ModuleDict({name: _unit(name, config) for name in units[branch:]})
            passed = 3 if config.residual_to_aux else 0
            if passed and config.stem_stride > 1:
                passed = width
                self.auxiliary["residual"] = stem(3, width, config)  # to the features' size
            self.auxiliary["mix"] = conv(width + passed, width, config.kernel)
            self.auxiliary["head"] = head(width, config)

    def forward(
        self, x: Tensor, recurrent: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Return the residual, the reconstruction (None without auxiliary branch) and the features
        for the next scale.

        ``x`` is (N, 6, H, W); ``recurrent`` holds F_1 ... F_L of the coarser scale at this scale's
        sizes."""
        shared = self._run(self.shared, State(x, (), ()), recurrent)
        primary = self._run(self.primary, shared, recurrent)
        residual = self.primary["head"](primary.x)
        features = primary.features[::-1]
        if not self.config.aux_branch:
            return residual, None, features
        auxiliary = self._run(self.auxiliary, shared, recurrent).x
        if self.config.residual_to_aux:
            passed = residual  # not detached: this lets the loss reach the primary head
            if "residual" in self.auxiliary:
                passed = self.auxiliary["residual"](residual)
            auxiliary = torch.cat([auxiliary, passed], 1)
        hidden = F.leaky_relu(self.auxiliary["mix"](auxiliary), self.config.slope)
        return residual, self.auxiliary["head"](hidden), features

    def _run(
        self, units: nn.ModuleDict, state: State, recurrent: tuple[Tensor, ...] | None
    ) -> State:
        for name in _unit_names(self.config):
            if name in units:
                state = self._step(name, units[name], state, recurrent)
        return state

    def _step(
        self, name: str, unit: nn.Module, state: State, recurrent: tuple[Tensor, ...] | None
    ) -> State:
        kind, _, level = name.partition("_")
        if kind == "encode":
            x = unit(state.x, recurrent[int(level) - 1] if recurrent else None)
            return State(x, (*state.skips, x), state.features)
        if kind == "up":
            return state._replace(x=unit(state.x, state.skips[int(level) - 1]))
        x = unit(state.x)
        return state._replace(x=x, features=(*state.features, x))


class DeblurNet(nn.Module):
    """The multi-scale network: runs `ScaleNet` from the coarsest scale to the finest.

    Images are (N, 3, H, W) float in [-1, 1], RGB; H and W must be multiples of ``size_multiple``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.size_multiple = config.size_multiple
        count = 1 if config.share_scales else config.n_scales
        self.scales = nn.ModuleList(ScaleNet(config) for _ in range(count))
        self._initialise()

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """The image at every scale, finest first, each half the size of the one before it, anti-
        aliased.
        """
        levels = [image]
        for _ in range(self.config.n_scales - 1):
            previous = levels[-1]
            area = self.config.pyramid == "area"
            levels.append(F.avg_pool2d(previous, 2) if area else gaussian_half(previous))
        return tuple(levels)

    def forward(self, image: Tensor) -> Outputs:
        """Restore and reconstruct ``image`` at every scale."""
        restored: list[Tensor] = []
        reconstructed: list[Tensor] = []
        recurrent: tuple[Tensor, ...] | None = None
        for index, blurred in reversed(list(enumerate(self.pyramid(image)))):
            x = torch.cat([blurred, self._estimate(blurred, restored)], 1)
            scale = self.scales[0 if self.config.share_scales else index]
            residual, again, features = scale(x, recurrent)
            restored.append(blurred + residual)
            if again is not None:
                reconstructed.append(again)
            if self.config.feature_recurrence and index > 0:
                recurrent = tuple(_up2(feature) for feature in features)
        return Outputs(tuple(restored[::-1]), tuple(reconstructed[::-1]))

    def restore(self, image: Tensor) -> Tensor:
        """The sharp image the primary branch predicts, same shape as ``image``, not clamped."""
        return self(image).restored[0]

    def adaptation_loss(self, image: Tensor) -> Tensor:
        """The auxiliary loss of Eq. 1, one mean-L1 term a scale: (n_scales,)."""
        return adaptation_terms(self, self(image), image)

    def parameter_groups(self) -> dict[str, list[str]]:
        """Names of the parameters of theta^S, theta^Pri and theta^Aux (paper, Eq. 2)."""
        groups: dict[str, list[str]] = {"shared": [], "primary": [], "auxiliary": []}
        for name, _ in self.named_parameters():
            groups[name.split(".")[2]].append(name)
        return {group: names for group, names in groups.items() if names}

    def _estimate(self, blurred: Tensor, restored: list[Tensor]) -> Tensor:
        if not restored:
            return blurred
        coarse = restored[-1].detach() if self.config.stop_gradient else restored[-1]
        return _up2(coarse)

    def _initialise(self) -> None:
        """Kaiming, but heads and what is added to a residual path start small, and linear layers
        keep the variance.

        Without that the values grow with every block and scale, to 1e9 at the finest one.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                continue
            linear = name.endswith(("merge", "head"))
            nn.init.kaiming_normal_(
                module.weight, 1.0 if linear else self.config.slope, nonlinearity="leaky_relu"
            )
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            if name.endswith(("second", "primary.head")):
                with torch.no_grad():
                    module.weight.mul_(0.1)


def restoration_terms(
    network: DeblurNet, outputs: Outputs, sharp: Tensor, loss: str = PAPER_LOSS
) -> Tensor:
    """The primary loss, one term a scale: (n_scales,). The loss is their sum.

    "l1" is the mean absolute error of Eq. 1. "psnr" is the logarithm of each image's mean squared
    error, averaged over the images, as in HINet (Chen et al., CVPR workshops 2021): an image that
    is nearly sharp counts like any other, where L1 hardly sees what is done to it.
    """
    pairs = zip(network.pyramid(sharp), outputs.restored, strict=True)
    errors = [target - output for target, output in pairs]
    if loss == "psnr":
        squares = [error.square().mean((1, 2, 3)) for error in errors]
        return torch.stack([_PSNR_WEIGHT * (s + _PSNR_FLOOR).log().mean() for s in squares])
    return torch.stack([error.abs().mean() for error in errors])


def adaptation_terms(network: DeblurNet, outputs: Outputs, image: Tensor) -> Tensor:
    """The auxiliary loss of Eq. 1: mean absolute error at each scale, (n_scales,); the loss is
    their sum.

    Raises:
        ValueError: if the network has no auxiliary branch.
    """
    if not outputs.reconstructed:
        raise ValueError("adaptation loss: this network was built with aux_branch = false")
    pairs = zip(network.pyramid(image), outputs.reconstructed, strict=True)
    return torch.stack([(target - output).abs().mean() for target, output in pairs])


def build(**options: object) -> DeblurNet:
    """Build a network from the options of `NetworkConfig`; the factory that bundles name."""
    return DeblurNet(NetworkConfig.from_options(options))


def _unit_names(config: NetworkConfig) -> tuple[str, ...]:
    levels = len(config.widths)
    encoders = tuple(f"encode_{level}" for level in range(1, levels + 1))
    decoders: tuple[str, ...] = ()
    for level in range(levels - 1, 0, -1):
        decoders += (f"up_{level}", f"decode_{level}")
    return (*encoders, "bottom", *decoders)


def _unit(name: str, config: NetworkConfig) -> nn.Module:
    kind, _, level = name.partition("_")
    index = int(level) - 1 if level else len(config.widths) - 1
    if kind == "encode":
        return EncoderLevel(index, config)
    if kind == "up":
        return UpBlock(index, config)
    return ResidualBlocks(config.widths[index], config)


def _up2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
