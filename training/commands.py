"""`edgeadapt train joint` and `edgeadapt train meta`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from edgeadapt.training.config import TrainingConfig, read_config
from edgeadapt.training.processes import open_fabric
from edgeadapt.training.run import Job, Run

_PATH = click.Path(path_type=Path)
_OPTIONS = [
    click.argument("config"),
    click.option("-o", "--output", "folder", required=True, type=_PATH, help="Folder of the run."),
    click.option("--data", required=True, type=_PATH, help="Root of the paths in [data]."),
    click.option("--start", type=_PATH, help="Checkpoint whose weights to begin with."),
    click.option(
        "--resume", is_flag=True, help="Go on with the run in the folder, if there is one."
    ),
    click.option("--minutes", type=click.FloatRange(min=0), help="Stop after this time."),
    click.option(
        "--iterations", type=click.IntRange(min=1), help="Instead of the configured ones."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads PyTorch may use."),
    click.option("--accelerator", default="cpu", show_default=True, help="cpu, cuda or auto."),
]


@click.group()
def train() -> None:
    """Train a network: first jointly, then for adaptation.

    CONFIG is a TOML file or the name of one that ships: edge, nano, paper. Runs on several
    processes under torchrun: torchrun --nproc-per-node 2 -m -- edgeadapt train joint ... Without
    the two dashes torchrun takes --start for an option of its own.
    """


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@train.command()
@_with_options
@click.option(
    "--teacher",
    type=_PATH,
    help="Checkpoint of a network; what it restores is learned instead of the sharp images.",
)
def joint(**options: Any) -> None:
    """Train restoration and reconstruction together (Eq. 3)."""
    _run("joint", **options)


@train.command()
@_with_options
def meta(**options: Any) -> None:
    """Train for what K steps of adaptation will make of the network (Algorithm 1)."""
    _run("meta", **options)


def _run(
    kind: str,
    config: str,
    folder: Path,
    data: Path,
    start: Path | None,
    resume: bool,
    minutes: float | None,
    iterations: int | None,
    threads: int | None,
    accelerator: str,
    teacher: Path | None = None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    settings = _with_iterations(read_config(config), kind, iterations)
    limit = math.inf if minutes is None else minutes
    job = Job(kind, settings, folder, data, start, resume, limit, teacher)
    Run(job, open_fabric(accelerator)).train()


def _with_iterations(config: TrainingConfig, kind: str, iterations: int | None) -> TrainingConfig:
    if iterations is None:
        return config
    if kind == "joint":
        return replace(config, joint=replace(config.joint, iterations=iterations))
    return replace(config, meta=replace(config.meta, iterations=iterations))
