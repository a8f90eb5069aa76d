"""From the rows of images to one line a model and shift: per recording first, then over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from edgeadapt.benchmarks.quality import Task
from edgeadapt.benchmarks.rows import INPUT, Row

LOWERED_DB = 0.05  # an image that loses more than this was harmed by its adaptation


class Measured(Protocol):
    """The quality of one image."""

    @property
    def psnr(self) -> float:
        """In dB."""

    @property
    def ssim(self) -> float | None:
        """None for an image smaller than its window."""


@dataclass(frozen=True)
class Mean:
    """PSNR in dB and SSIM, averaged over recordings."""

    psnr: float
    ssim: float  # NaN if every image is smaller than its window


@dataclass(frozen=True)
class Summary:
    """One model under one shift."""

    model: str
    control: bool
    shift: str
    images: int
    recordings: int
    blurred: Mean
    steps: tuple[Mean, ...]  # after 0, 1, ... K steps
    lowered: float  # share of the images that K steps lower by more than `LOWERED_DB`
    reverted: int  # images whose K steps were taken back
    trained_steps: int  # K of the bundle
    raw: tuple[float, ...]  # PSNR after 0, 1, ... K steps, had none been; NaN: not a number

    @property
    def gains(self) -> list[float]:
        """PSNR over plain inference, in dB, after 0, 1, ... K steps."""
        return [step.psnr - self.steps[0].psnr for step in self.steps]

    @property
    def raw_gains(self) -> list[float]:
        """The same, had no adaptation been taken back: what the steps themselves do."""
        return [psnr - self.steps[0].psnr for psnr in self.raw]


def summarize(tasks: Sequence[Task], rows: Sequence[Sequence[Row]]) -> list[Summary]:
    """One summary for each model and shift, in their order; ``rows`` are those of the tasks."""
    groups: dict[tuple[str, str], list[tuple[Task, Sequence[Row]]]] = {}
    for task, own in zip(tasks, rows, strict=True):
        groups.setdefault((task.model.name, task.shift), []).append((task, own))
    return [_summarize(group) for group in groups.values()]


def _summarize(group: Sequence[tuple[Task, Sequence[Row]]]) -> Summary:
    first = group[0][0]
    images = [{row.step: row for row in rows} for _, rows in group]
    recordings = [task.sample.recording for task, _ in group]
    last = first.key.steps
    lowered = [image[0].psnr - image[last].psnr > LOWERED_DB for image in images]
    means = [
        mean_quality([image[step] for image in images], recordings)
        for step in [INPUT, *range(last + 1)]
    ]
    return Summary(
        model=first.model.name,
        control=first.model.control,
        shift=first.shift,
        images=len(images),
        recordings=len(set(recordings)),
        blurred=means[0],
        steps=tuple(means[1:]),
        lowered=sum(lowered) / len(lowered),
        reverted=sum(image[last].reverted for image in images),
        trained_steps=first.model.bundle.manifest.adaptation.steps,
        raw=tuple(
            mean_raw([image[step] for image in images], recordings) for step in range(last + 1)
        ),
    )


def mean_quality(rows: Sequence[Measured], recordings: Sequence[str]) -> Mean:
    """Over the rows of a recording, then over recordings; ``recordings`` has one for each row."""
    by_recording: dict[str, list[Measured]] = {}
    for row, recording in zip(rows, recordings, strict=True):
        by_recording.setdefault(recording, []).append(row)
    groups = by_recording.values()
    return Mean(
        _average(_average(row.psnr for row in group) for group in groups),
        _average(_average(row.ssim for row in group if row.ssim is not None) for group in groups),
    )


def mean_raw(rows: Sequence[Row], recordings: Sequence[str]) -> float:
    """Mean PSNR had no adaptation been taken back, or NaN if one image has none."""
    raw = [row.raw_psnr for row in rows]
    if any(psnr is None for psnr in raw):
        return math.nan
    kept = [
        replace(row, psnr=psnr) for row, psnr in zip(rows, raw, strict=True) if psnr is not None
    ]
    return mean_quality(kept, recordings).psnr


def _average(values: Iterable[float]) -> float:
    """The mean of those that are numbers; NaN if there is none."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
