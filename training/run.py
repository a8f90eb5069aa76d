"""The training loop: batches in, steps of a stage, checkpoints, validation, reports."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from edgeadapt.errors import CheckpointError, ConfigError, EdgeadaptError
from edgeadapt.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    adaptation_fields,
    load_checkpoint,
    restore_network,
    save_checkpoint,
)
from edgeadapt.training.config import (
    JointConfig,
    MetaConfig,
    TrainingConfig,
    structure_config,
)
from edgeadapt.training.data import Batches, open_batches, validation_pairs
from edgeadapt.training.images import ImageCache
from edgeadapt.training.joint import JointStage
from edgeadapt.training.meta import MetaStage
from edgeadapt.training.network import DeblurNet
from edgeadapt.training.processes import any_process, average_over
from edgeadapt.training.report import Report
from edgeadapt.training.stage import precision_note
from edgeadapt.training.validation import validate


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where to keep it."""

    kind: str  # joint | meta
    config: TrainingConfig
    folder: Path  # of the run: last.pt, best.pt and TensorBoard's events
    data: Path  # root of the paths in [data]
    start: Path | None = None  # checkpoint whose weights to begin with
    resume: bool = False  # go on from last.pt in the folder; begin afresh if there is none
    minutes: float = math.inf  # stop after this time, with a checkpoint
    teacher: Path | None = None  # joint: checkpoint of the network whose restorations are targets

    @property
    def section(self) -> JointConfig | MetaConfig:
        """The part of the configuration that is about this stage."""
        return self.config.joint if self.kind == "joint" else self.config.meta


class Run:
    """One run of a `Job`; everything that a resumed run needs goes through its checkpoints."""

    def __init__(self, job: Job, fabric: Fabric) -> None:
        """Open the data, and build the network or read it from a checkpoint.

        Raises:
            EdgeadaptError: for a folder in use, or data or a checkpoint that do not fit the
                configuration.
        """
        self.job, self._fabric = job, fabric
        self._deadline = time.monotonic() + 60 * job.minutes
        resumed = _read_last(job)
        network = _starting_network(job, resumed)
        _check_crop(job, network, "the network")
        _check_batch(job, fabric.world_size)
        self._memory = (
            torch.channels_last if job.config.run.channels_last else torch.contiguous_format
        )
        self._place(network)
        self.stage = self._open_stage(network)
        self.done, self.best_psnr = 0, -math.inf
        if resumed is not None:
            self.stage.load_state(resumed.stage)
            self.done, self.best_psnr = resumed.iteration, resumed.best_psnr
        self._open_data(network.size_multiple)

    def train(self) -> None:
        """Go on until all iterations are done or the time is up; the last state is in ``last.pt``.

        Raises:
            EdgeadaptError: if the loss stops being a finite number.
        """
        first = self._fabric.is_global_zero
        if first:
            self.job.folder.mkdir(parents=True, exist_ok=True)
            self._save(better=False)
        with Report(
            self.job.folder, self.job.kind, self.job.section.iterations, self.done, first
        ) as report:
            report.note(precision_note(self.job.section.precision, self._fabric.device))
            workers = self.job.config.run.workers
            batches = self._batches.ahead(self.done, self.job.section.iterations, workers)
            for iteration, blurred, sharp in batches:
                values = self._step(iteration, blurred, sharp)
                self.done = iteration + 1
                over = any_process(self._fabric, time.monotonic() > self._deadline)
                over = over or self.done == self.job.section.iterations
                if over or self.done % self.job.config.run.log_every == 0:
                    report.values(self.done, _finite(values, self.done))
                if first:
                    self._keep(report, over)
                report.advance(self.done)
                if over:
                    break

    def checkpoint(self) -> Checkpoint:
        """The state after ``done`` iterations."""
        return Checkpoint(
            kind=self.job.kind,
            network=asdict(self.job.config.network),
            weights={k: v.detach().cpu() for k, v in self.stage.network.state_dict().items()},
            adaptation=adaptation_fields(self.stage.adaptation()),
            config=asdict(self.job.config),
            iteration=self.done,
            best_psnr=self.best_psnr,
            stage=self.stage.state(),
        )

    def _place(self, network: DeblurNet) -> DeblurNet:
        return network.to(self._fabric.device).to(memory_format=self._memory)  # type: ignore[call-overload]

    def _open_stage(self, network: DeblurNet) -> JointStage | MetaStage:
        if self.job.kind == "meta":
            return MetaStage(network, self.job.config)
        if self.job.teacher is None:
            return JointStage(network, self.job.config)
        teacher = restore_network(load_checkpoint(self.job.teacher), self.job.teacher)
        _check_crop(self.job, teacher, "the teacher")
        return JointStage(network, self.job.config, self._place(teacher))

    def _open_data(self, multiple: int) -> None:
        data, cache = self.job.config.data, ImageCache(self.job.config.data.cache_megabytes)
        rank, processes = self._fabric.global_rank, self._fabric.world_size
        self._batches: Batches = open_batches(
            data, self.job.data, cache, self.job.section.batch, rank, processes
        )
        first = self._fabric.is_global_zero  # the others wait for it at the next average
        self._pairs = validation_pairs(data, self.job.data, cache, multiple) if first else []

    def _step(self, iteration: int, blurred: Tensor, sharp: Tensor) -> dict[str, Tensor]:
        def average(tensors: Sequence[Tensor]) -> None:
            average_over(self._fabric, tensors)

        def place(images: Tensor) -> Tensor:
            return images.to(self._fabric.device, memory_format=self._memory)

        return self.stage.step(iteration, place(blurred), place(sharp), average)

    def _keep(self, report: Report, over: bool) -> None:
        """Validate and write checkpoints when it is time to."""
        run = self.job.config.run
        better = False
        if self._pairs and (over or self.done % run.validate_every == 0):
            scores = validate(self.stage, self._pairs, self._fabric.device)
            report.values(self.done, scores, "validation")
            better = scores["psnr"] > self.best_psnr
            self.best_psnr = max(scores["psnr"], self.best_psnr)
        if over or better or self.done % run.checkpoint_every == 0:
            self._save(better)

    def _save(self, better: bool) -> None:
        checkpoint = self.checkpoint()
        if not all(bool(weight.isfinite().all()) for weight in checkpoint.weights.values()):
            raise _diverged(self.done, "a weight is infinite or NaN")
        # best.pt first: a kill between the two leaves a last.pt that will find and write the same
        # best.pt again
        if better:
            save_checkpoint(self.job.folder / BEST, checkpoint)
        save_checkpoint(self.job.folder / LAST, checkpoint)


def _read_last(job: Job) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin."""
    path = job.folder / LAST
    if not path.exists():
        return None
    if not job.resume:
        raise CheckpointError(
            f"{job.folder}: already holds a run.",
            "give --resume to go on with it, or another folder.",
        )
    checkpoint = load_checkpoint(path)
    if checkpoint.kind != job.kind:
        raise CheckpointError(f"{path}: is a {checkpoint.kind} run, not a {job.kind} run.")
    # A setting that came later has, in an older checkpoint, the value that it stood for.
    then = _essence(asdict(structure_config(checkpoint.config)), job.kind)
    now = _essence(asdict(job.config), job.kind)
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        raise CheckpointError(
            f"{path}: was trained with another configuration; {changed[0]} was "
            f"{then.get(changed[0])!r}, is now {now.get(changed[0])!r}.",
            "resume with the same configuration, or start a new run with --start.",
        )
    return checkpoint


def _essence(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What a resumed run must keep: all but [run], the other stage and the length."""
    return {
        f"{section}.{key}": value
        for section in ("network", "data", kind)
        for key, value in config[section].items()
        if key not in ("iterations", "cache_megabytes")
    }


def _starting_network(job: Job, resumed: Checkpoint | None) -> DeblurNet:
    if resumed is not None:
        return restore_network(resumed, job.folder / LAST)
    if job.start is None:
        if job.kind == "meta":
            raise ConfigError(
                "meta training: needs a jointly trained network to start from.",
                "give its checkpoint with --start RUN_DIR/best.pt.",
            )
        torch.manual_seed(job.config.data.seed)
        return DeblurNet(job.config.network)
    start = load_checkpoint(job.start)
    network = restore_network(start, job.start)
    if network.config != job.config.network:
        raise CheckpointError(
            f"{job.start}: holds another network than the [network] section describes.",
            "use the [network] section that it was trained with.",
        )
    return network


def _check_crop(job: Job, network: DeblurNet, whose: str) -> None:
    crop, multiple = job.config.data.crop, network.size_multiple
    if crop % multiple:
        raise ConfigError(f"data.crop: must be a multiple of {multiple} for {whose}, got {crop}.")


def _check_batch(job: Job, processes: int) -> None:
    batch = job.section.batch  # pairs an iteration, over all processes
    if batch % processes:
        raise ConfigError(
            f"{job.kind}.batch: must be a multiple of the {processes} processes, got {batch}."
        )


def _finite(values: Mapping[str, Tensor], done: int) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise _diverged(done, str(numbers))
    return numbers


def _diverged(done: int, what: str) -> EdgeadaptError:
    return EdgeadaptError(
        f"training: not a finite number after {done} iterations: {what}.",
        f"{LAST} holds an earlier state; use a smaller learning rate or clip_norm.",
    )
