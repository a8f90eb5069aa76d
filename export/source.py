"""Where a network to export comes from: a checkpoint of `edgeadapt train`, or a factory and a state
dict.

Networks are known here by the name of their factory only, "package.module:callable" or
"file.py:callable": that is what the manifest records, and it keeps this package free of any
particular network."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeadapt.bundle import Adaptation, Model
from edgeadapt.errors import EdgeadaptError, ExportError, one_line
from edgeadapt.export.trust import DEBLUR_FACTORY, LOSS_FACTORY

CHECKPOINT_READER = "edgeadapt.training.checkpoint:load_network"
PAPER_ADAPTATION = Adaptation(steps=5, optimizer="sgd", step_size=2.5e-5)  # Chi et al., section 4


@dataclass(frozen=True)
class Source:
    """A network with its weights, how to build it again, and how it was trained to be adapted."""

    network: nn.Module
    model: Model
    adaptation: Adaptation


def open_source(text: str, options: Mapping[str, Any], weights: Path | None) -> Source:
    """Open what the command line calls SOURCE: a checkpoint's path, or a factory with ``options``
    and ``weights``.

    Raises:
        ExportError: if it is neither, or the factory or the weights do not fit.
        CheckpointError: if the checkpoint cannot be read.
    """
    if Path(text).is_file() and ":" not in text:
        if options or weights:
            raise ExportError(
                f"{text}: a checkpoint has its own options and weights.",
                "leave --option and --weights out.",
            )
        return _from_checkpoint(Path(text))
    if ":" not in text:
        raise ExportError(
            f"{text}: no such checkpoint.",
            "give a checkpoint written by `edgeadapt train`, or a factory as file.py:callable.",
        )
    network = build(text, options)
    if weights is not None:
        load_weights(network, read_state(weights), weights)
    name = type(network).__name__
    doc = (type(network).__doc__ or "").strip().partition("\n")[0]
    return Source(network, Model(name, doc, text, dict(options)), PAPER_ADAPTATION)


def build(factory: str, options: Mapping[str, Any]) -> nn.Module:
    """Call the factory named "package.module:callable" or "file.py:callable".

    Raises:
        ExportError: if it cannot be found or called.
    """
    function = _resolve(factory)
    try:
        network = function(**options)
    except EdgeadaptError:
        raise
    except Exception as error:  # the factory is the user's code: report, do not trace
        raise ExportError(f"{factory}({dict(options)}): {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ExportError(f"{factory} must return a torch.nn.Module, got {type(network).__name__}.")
    return network


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a file written by torch.save: a state dict, or a checkpoint of `edgeadapt
    train`.

    Raises:
        ExportError: if it is neither.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = one_line(error, 120)
        raise ExportError(f"{path}: not a file of weights ({reason}).") from error
    if isinstance(state, dict) and isinstance(state.get("weights"), dict):
        state = state["weights"]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ExportError(
            f"{path}: not a state dict.", "save network.state_dict() with torch.save."
        )
    return state


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict; an `ExportError` names the first key or shape that does not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = one_line(error, 200)
        raise ExportError(f"{path}: these weights are not this network's ({reason}).") from error


def _from_checkpoint(path: Path) -> Source:
    network, learned = _resolve(CHECKPOINT_READER)(path)
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(network.config).items()
    }
    adaptation = Adaptation(
        learned.steps, learned.optimizer, learned.step_size, dict(learned.step_sizes)
    )
    factory, loss = DEBLUR_FACTORY, getattr(network, "loss", None)
    if loss is not None:
        factory, config = LOSS_FACTORY, config | {"loss": loss}
    widths = "/".join(str(width) for width in config["widths"])
    count = network.config.n_scales
    scales = f"{count} scale{'s' if count > 1 else ''}"
    description = (
        f"Two-branch deblurring network, {scales}, widths {widths} (Chi et al., CVPR 2021)"
    )
    return Source(
        network,
        Model(path.parent.name or path.stem, description, factory, config),
        adaptation,
    )


def _resolve(text: str) -> Any:
    place, _, attribute = text.rpartition(":")
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
        return getattr(module, attribute)
    except AttributeError as error:
        raise ExportError(
            f"{place} has no {attribute!r}.", "name a class or function that returns the network."
        ) from error
    except (ImportError, OSError, SyntaxError) as error:
        raise ExportError(
            f"{text}: cannot be imported ({error}).",
            "give file.py:callable or package.module:callable.",
        ) from error


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
