"""Training configuration: TOML -> frozen dataclasses; a key that is no field is an error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cattrs

from edgeadapt.errors import ConfigError
from edgeadapt.training.network_config import NetworkConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class SourceConfig:
    """One ``[[data.train]]`` or ``[[data.validation]]`` entry."""

    kind: str  # gopro | reds | pairs | sharp | video; layouts.py says what each expects
    path: str  # below the data root
    weight: float = 1.0  # share of the crops that come from here
    strength: float = 1.0  # of synthetic blur; kind = "sharp" only
    blur: str = "blur"  # name of the folder with blurred frames; GoPro also has blur_gamma
    count: int = 0  # validation only: how many pairs, evenly spread; 0 = all

    def __post_init__(self) -> None:
        _one_of("data.kind", self.kind, ("gopro", "reds", "pairs", "sharp", "video"))
        _positive("data.weight", self.weight)


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: what to train and validate on."""

    train: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...] = ()
    crop: int = 256  # paper, section 4.2
    validation_size: int = 256  # the middle of each validation image, at most this high and wide
    seed: int = 0  # of the initial weights and of every crop
    cache_megabytes: int = 2000  # decoded images kept in memory

    def __post_init__(self) -> None:
        _positive("data.crop", self.crop)
        _positive("data.validation_size", self.validation_size)
        if not self.train:
            raise ConfigError("data.train: must hold at least one source, got none.")


_PRECISIONS = ("fp32", "bf16")
PAPER_LOSS = "l1"
LOSSES = (PAPER_LOSS, "l2", "charbonnier", "scales", "again")
RESTORATION_LOSSES = (PAPER_LOSS, "psnr")  # training/network.py says what they are


@dataclass(frozen=True)
class JointConfig:
    """``[joint]``: stage 1, Eq. 3."""

    iterations: int = 1_400_000  # the paper's 4000 epochs of 2103 pairs in batches of 6
    batch: int = 6  # paper
    learning_rate: float = 1e-4  # paper
    # plateau (paper: halved when the loss stops falling) | cosine | constant
    schedule: str = "plateau"
    warmup: int = 0  # iterations of linear warm-up, with any schedule
    final_rate: float = 1e-6  # where cosine ends and plateau stops
    plateau_window: int = 350  # iterations whose mean loss is compared: one epoch of the paper
    plateau_patience: int = 50  # windows without a better loss before the rate is halved
    clip_norm: float = 0.0  # longest gradient; 0: not clipped
    # Of the reconstruction's loss beside the restoration's; Eq. 3 has 1. An L1 loss pulls as hard
    # when it is small: with 1 a short training learns to copy its input and little else.
    adaptation_weight: float = 1.0
    restoration: str = PAPER_LOSS  # l1 | psnr: what the restored image is held to the sharp one by
    precision: str = "fp32"  # fp32 | bf16: autocast, weights stay float32

    def __post_init__(self) -> None:
        _one_of("joint.schedule", self.schedule, ("plateau", "cosine", "constant"))
        _one_of("joint.restoration", self.restoration, RESTORATION_LOSSES)
        _one_of("joint.precision", self.precision, _PRECISIONS)
        for name in (
            "iterations", "batch", "learning_rate", "plateau_window", "adaptation_weight"
        ):  # fmt: skip
            _positive(f"joint.{name}", getattr(self, name))


@dataclass(frozen=True)
class MetaConfig:
    """``[meta]``: stage 2, Algorithm 1. Letters of the paper in brackets."""

    iterations: int = 20_000  # the paper does not say
    batch: int = 5  # [N]
    steps: int = 5  # [K]
    order: int = 2  # 2: through the inner steps; 1: first-order MAML
    inner_optimizer: str = "sgd"  # sgd (paper, Eq. 4) | adam, its state fresh for every sample
    step_size: float = 2.5e-5  # [alpha]
    # One per tensor, learned with the weights (Meta-SGD, Li et al. 2017).
    learn_step_sizes: bool = False
    step_sizes_rate: float = 1e-2  # learning rate of their logarithms
    loss: str = PAPER_LOSS  # of the inner steps; training/losses.py says which there are
    restoration: str = PAPER_LOSS  # of the outer step: l1 | psnr
    unadapted_weight: float = 0.0  # of that loss at K = 0 beside the one after K steps; 0: Eq. 5
    aux_update: str = "literal"  # literal (Algorithm 1) | copy_back | outer
    outer_reduce: str = "sum"  # over the batch: sum (paper, Eq. 6) | mean
    outer_optimizer: str = "adam"  # adam | sgd
    learning_rate: float = 2.5e-5  # [beta]
    schedule: str = "constant"  # constant (paper) | cosine: both rates fall to 0 at `iterations`
    clip_norm: float = 0.0  # longest outer gradient; 0: not clipped
    precision: str = "fp32"  # fp32 | bf16; in bf16 the differences the inner steps make are noise

    def __post_init__(self) -> None:
        _one_of("meta.order", self.order, (1, 2))
        _one_of("meta.inner_optimizer", self.inner_optimizer, ("sgd", "adam"))
        _one_of("meta.loss", self.loss, LOSSES)
        _one_of("meta.restoration", self.restoration, RESTORATION_LOSSES)
        _one_of("meta.aux_update", self.aux_update, ("literal", "copy_back", "outer"))
        _one_of("meta.outer_reduce", self.outer_reduce, ("sum", "mean"))
        _one_of("meta.schedule", self.schedule, ("constant", "cosine"))
        _one_of("meta.outer_optimizer", self.outer_optimizer, ("adam", "sgd"))
        _one_of("meta.precision", self.precision, _PRECISIONS)
        for name in ("iterations", "batch", "steps", "step_size", "learning_rate"):
            _positive(f"meta.{name}", getattr(self, name))
        _not_negative("meta.unadapted_weight", self.unadapted_weight)


@dataclass(frozen=True)
class RunConfig:
    """``[run]``: how to run; may differ when a run is resumed."""

    channels_last: bool = False  # memory layout of images and weights
    log_every: int = 50  # iterations
    checkpoint_every: int = 200
    validate_every: int = 1000
    workers: int = 0  # processes that make batches, for a fast GPU; 0: a thread of this one

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "validate_every"):
            _positive(f"run.{name}", getattr(self, name))
        _not_negative("run.workers", self.workers)


@dataclass(frozen=True)
class TrainingConfig:
    """A whole configuration file."""

    network: NetworkConfig
    data: DataConfig
    joint: JointConfig = field(default_factory=JointConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    run: RunConfig = field(default_factory=RunConfig)


def read_config(name: str) -> TrainingConfig:
    """Read a TOML file, or one that ships by its name without suffix: edge, nano, paper.

    Raises:
        ConfigError: naming the file, the key and the keys there are.
    """
    path = Path(name)
    if not path.exists() and path.name == name and not path.suffix:
        path = Path(str(package_files("edgeadapt.training") / "configs" / f"{name}.toml"))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: not a readable TOML file ({error}).") from error
    try:
        return structure_config(document)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}", error.hint) from error


def structure_config(document: Mapping[str, Any]) -> TrainingConfig:
    """Build a configuration from the content of a file or of a checkpoint.

    Raises:
        ConfigError: for a missing or unknown key, a value of the wrong type or out of range.
    """
    _refuse_unknown(document, TrainingConfig, "")
    try:
        return _CONVERTER.structure(dict(document), TrainingConfig)
    except cattrs.BaseValidationError as error:
        own = _first_config_error(error)
        if own is not None:
            raise own from error
        raise ConfigError("; ".join(cattrs.transform_error(error)) + ".") from error


def _refuse_unknown(document: object, kind: type, where: str) -> None:
    """Raise for a key that ``kind`` has no field for, with the ones it has."""
    if kind is NetworkConfig or not is_dataclass(kind) or not isinstance(document, Mapping):
        return  # NetworkConfig checks its own: it also knows `preset`
    types = get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]
    for key, value in document.items():
        if key not in known:
            place = f"unknown key {key!r} in [{where}]" if where else f"unknown section [{key}]"
            raise ConfigError(f"{place}.", f"known: {', '.join(known)}.")
        inner = get_args(types[key])[:1]
        name = f"{where}.{key}" if where else key
        for entry in value if inner and isinstance(value, (list, tuple)) else [value]:
            _refuse_unknown(entry, inner[0] if inner else types[key], name)


def _first_config_error(error: BaseException) -> ConfigError | None:
    if isinstance(error, ConfigError):
        return error
    inner = getattr(error, "exceptions", ())
    return next((found for e in inner if (found := _first_config_error(e)) is not None), None)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        choices = " | ".join(map(str, allowed))
        raise ConfigError(f"{name}: must be {choices}, got {value!r}.")


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name}: must be greater than 0, got {value!r}.")


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name}: must be at least 0, got {value!r}.")


def _structure_network(value: Any, _: type) -> NetworkConfig:
    return NetworkConfig.from_options(value)


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_structure_hook(NetworkConfig, _structure_network)
