"""Training checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeadapt.errors import CheckpointError, ConfigError
from edgeadapt.files import atomic_file
from edgeadapt.training.config import PAPER_LOSS
from edgeadapt.training.losses import LossNet
from edgeadapt.training.network import DeblurNet
from edgeadapt.training.network_config import NetworkConfig

FORMAT_VERSION = 1
LAST, BEST = "last.pt", "best.pt"


@dataclass(frozen=True)
class LearnedAdaptation:
    """How a network wants to be adapted at test time."""

    steps: int  # K
    optimizer: str  # sgd | adam
    step_size: float  # of every parameter that step_sizes does not name
    step_sizes: Mapping[str, float] = field(default_factory=dict)  # parameter -> learned step size


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had not stopped."""

    kind: str  # joint | meta
    network: Mapping[str, Any]  # fields of NetworkConfig
    weights: Mapping[str, Tensor]
    adaptation: Mapping[str, Any]  # fields of LearnedAdaptation
    config: Mapping[str, Any]  # the TrainingConfig, for the record and to refuse another one
    iteration: int  # iterations done
    best_psnr: float  # in dB, over the validation pairs; -inf before the first validation
    stage: Mapping[str, Any]  # optimiser, schedule and what else the stage carries over
    format_version: int = FORMAT_VERSION


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``path`` atomically: a process killed meanwhile leaves the file that was there.

    Raises:
        CheckpointError: if the folder cannot be written to.
    """
    content = {entry.name: getattr(checkpoint, entry.name) for entry in fields(Checkpoint)}
    try:
        with atomic_file(path) as temporary:
            torch.save(content, temporary)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}).") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: if it is missing, damaged, not a checkpoint of edgeadapt or of a newer
            format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    hint = f"a run keeps {LAST} and {BEST} in its folder; use one of these."
    # torch.load would take any other file for a bare pickle, and fail in as many ways as there are
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: not a readable checkpoint (not a zip archive).", hint)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}).", hint) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: not a checkpoint that `edgeadapt train` wrote.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, this edgeadapt reads up to {FORMAT_VERSION}.",
            "upgrade edgeadapt.",
        )
    wrong = {entry.name for entry in fields(Checkpoint)} ^ content.keys()
    if wrong:
        raise CheckpointError(f"{path}: field {min(wrong)!r} is missing or unknown.")
    return Checkpoint(**content)


def load_network(path: Path) -> tuple[DeblurNet, LearnedAdaptation]:
    """The network in a checkpoint, in float32 on the CPU, and how it was trained to be adapted.

    Its `adaptation_loss` is the one of the checkpoint's [meta] section.

    Raises:
        CheckpointError: if the file is not a sound checkpoint.
        ConfigError: if its loss is one of a newer version.
    """
    checkpoint = load_checkpoint(path)
    network = restore_network(checkpoint, path)
    loss = checkpoint.config.get("meta", {}).get("loss", PAPER_LOSS)
    if loss != PAPER_LOSS:
        weights = network.state_dict()
        network = LossNet(network.config, loss)
        network.load_state_dict(weights)
    return network, read_adaptation(checkpoint, path)


def restore_network(checkpoint: Checkpoint, path: Path) -> DeblurNet:
    """Build the checkpoint's network with its weights; ``path`` is for the message.

    Raises:
        CheckpointError: if configuration and weights do not belong together.
    """
    try:
        network = DeblurNet(NetworkConfig.from_options(checkpoint.network))
        network.load_state_dict(dict(checkpoint.weights))
    except (ConfigError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its weights do not fit its network ({error}).") from error
    return network


def read_adaptation(checkpoint: Checkpoint, path: Path) -> LearnedAdaptation:
    """The checkpoint's adaptation; ``path`` is for the message.

    Raises:
        CheckpointError: if a field is missing or unknown.
    """
    try:
        return LearnedAdaptation(**checkpoint.adaptation)
    except TypeError as error:
        raise CheckpointError(f"{path}: field 'adaptation' is damaged ({error}).") from error


def adaptation_fields(adaptation: LearnedAdaptation) -> dict[str, Any]:
    """What `Checkpoint.adaptation` holds."""
    return asdict(adaptation)
