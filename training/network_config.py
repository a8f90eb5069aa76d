"""The switches of the deblurring network, and the three presets.

Where the paper is silent the default and its source stand beside the field. Names of sources: SRN
(Tao et al. 2018), MT-RNN (Park et al. 2020), Nah (Nah et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import cattrs

from edgeadapt.errors import ConfigError

SHARE_UNTIL = ("half_encoder", "encoder", "deconv2", "last_deconv")


@dataclass(frozen=True)
class NetworkConfig:
    """Every choice of the architecture.

    Raises:
        ConfigError: for a value out of range, naming the field.
    """

    widths: tuple[int, ...] = (32, 64, 128)  # channels a level; SRN and MT-RNN
    n_scales: int = 3  # paper
    share_scales: bool = (
        False  # one set of weights for all scales; Nah separates, SRN and MT-RNN share
    )
    feature_recurrence: bool = True  # decoder features enter the next finer encoder; paper
    aux_branch: bool = True  # paper
    share_until: str = "last_deconv"  # where the branches part; paper, Table 2
    residual_to_aux: bool = True  # paper
    kernel: int = 3  # MT-RNN; SRN and Nah use 5
    blocks: int = 3  # ResBlocks a stage; SRN and MT-RNN
    skip: str = "cat"  # "cat" + 1x1 conv as MT-RNN, or "add" as SRN
    slope: float = 0.1  # LeakyReLU; paper
    stop_gradient: bool = True  # through the upsampled coarse estimate; SRN
    recurrence_start: str = "duplicate"  # the coarsest scale's recurrent input; MT-RNN; or "zeros"
    pyramid: str = "area"  # "area" (mean of 2x2) or "gaussian" (Nah)
    stem_stride: int = 1  # of the opening convolution, undone by the heads; 1 in all three sources

    def __post_init__(self) -> None:
        _require(
            "widths",
            len(self.widths) >= 2 and min(self.widths) >= 1,
            self.widths,
            "two or more, each >= 1",
        )
        _require("n_scales", 1 <= self.n_scales <= 5, self.n_scales, "1 to 5")
        _require(
            "share_until",
            self.share_until in SHARE_UNTIL,
            self.share_until,
            " | ".join(SHARE_UNTIL),
        )
        _require("kernel", self.kernel >= 1 and self.kernel % 2 == 1, self.kernel, "odd")
        _require("blocks", self.blocks >= 1, self.blocks, "1 or more")
        _require("skip", self.skip in ("cat", "add"), self.skip, "cat | add")
        _require("slope", 0 <= self.slope < 1, self.slope, "in [0, 1)")
        _require(
            "recurrence_start",
            self.recurrence_start in ("duplicate", "zeros"),
            self.recurrence_start,
            "duplicate | zeros",
        )
        _require("stem_stride", self.stem_stride in (1, 2, 4), self.stem_stride, "1 | 2 | 4")
        _require("pyramid", self.pyramid in ("area", "gaussian"), self.pyramid, "area | gaussian")

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: one halving a scale and one a level, and the
        stem's stride.
        """
        return 2 ** (self.n_scales - 1 + len(self.widths) - 1) * self.stem_stride

    @property
    def branch_index(self) -> int:
        """How many units of a scale both branches share.

        They are the encoders, the bottom, then for each level one that enlarges and one that
        decodes.
        """
        levels = len(self.widths)
        everything = levels + 1 + 2 * (levels - 1)
        return {
            "half_encoder": (levels + 1) // 2,
            "encoder": levels + 1,
            "deconv2": everything - 1,
            "last_deconv": everything,
        }[self.share_until]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> NetworkConfig:
        """Build from a mapping: an optional ``preset`` and any fields that differ from it.

        Raises:
            ConfigError: for an unknown preset, an unknown field or a value out of range.
        """
        given = dict(options)
        base = given.pop("preset", None)
        if base is not None and base not in PRESETS:
            raise ConfigError(
                f"network: unknown preset {base!r}.", f"presets: {', '.join(PRESETS)}."
            )
        start = PRESETS[base] if base is not None else cls()
        known = {field.name: getattr(start, field.name) for field in fields(cls)}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(
                f"network: unknown option {unknown[0]!r}.", f"options: {', '.join(known)}."
            )
        try:
            return _CONVERTER.structure(known | given, cls)
        except cattrs.BaseValidationError as error:
            inner = error.exceptions[0]
            reason = (
                inner
                if isinstance(inner, ConfigError)
                else "; ".join(cattrs.transform_error(error))
            )
            raise ConfigError(f"network: {reason}") from error


def _require(name: str, holds: bool, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"network: {name} must be {expected}, got {value!r}.")


_CONVERTER = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

PRESETS = {
    "paper": NetworkConfig(),
    "edge": NetworkConfig(widths=(16, 32, 64), share_scales=True),
    "nano": NetworkConfig(widths=(8, 16, 32), share_scales=True),
}
