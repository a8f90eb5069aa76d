"""What adapting to every j-th frame of a clip is worth (Sec. 4.6 of Chi et al., CVPR 2021).

Weights adapted to one frame restore it and the frames until the next one that is adapted to, which
starts from the bundle's weights again. Stride 0 is plain inference of every frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from edgeadapt.benchmarks.quality import Model, Settings, bundle_digest, one_session
from edgeadapt.benchmarks.row_file import RowFile
from edgeadapt.benchmarks.samples import Sample
from edgeadapt.benchmarks.summary import Mean, mean_quality
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Session


@dataclass(frozen=True)
class ClipKey:
    """One clip at one stride: equal keys, equal results."""

    bundle: str  # digest of weights, graphs and adaptation
    backend: str
    precision: str
    scope: str
    step_size: str  # "" is the bundle's own
    steps: int  # K
    stride: int  # j; 0: never adapted
    recording: str
    files: str  # digest of all frames in their order


@dataclass(frozen=True)
class FrameRow:
    """The quality of one frame."""

    model: str
    key: ClipKey
    frame: int  # its place in the clip
    image: str
    blurred_psnr: float  # dB
    psnr: float
    ssim: float | None  # None for an image smaller than its window
    adapted: bool  # the weights were adapted to this very frame
    reverted: bool  # and taken back: it and those after it are restored by the bundle's weights


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of one recording, for one model at one stride."""

    model: Model
    key: ClipKey
    frames: tuple[Sample, ...]


@dataclass(frozen=True)
class StrideSummary:
    """One model at one stride, averaged over the frames of a recording, then over recordings."""

    model: str
    stride: int
    frames: int
    recordings: int
    blurred: float  # dB
    quality: Mean
    adapted: int  # frames adapted to
    reverted: int  # of these, taken back


def make_clips(
    models: Sequence[Model],
    samples: Sequence[Sample],
    strides: Sequence[int],
    settings: Settings,
) -> list[Clip]:
    """Every recording for every model at every stride."""
    clips: dict[str, tuple[Sample, ...]] = {
        name: tuple(group) for name, group in groupby(samples, lambda sample: sample.recording)
    }
    digests = {
        name: hashlib.sha256("".join(frame.digest() for frame in frames).encode()).hexdigest()[:16]
        for name, frames in clips.items()
    }
    return [
        Clip(model, _key(model, settings, stride, name, digests[name]), frames)
        for model in models
        for stride in strides
        for name, frames in clips.items()
    ]


def measure_clip(
    session: Session, clip: Clip, step_size: float | None, done: Callable[[], None]
) -> list[FrameRow]:
    """Restore the clip's frames in their order; the session ends with the bundle's weights."""
    key, rows = clip.key, []
    session.reset()
    for place, frame in enumerate(clip.frames):
        pair = frame.load("none")
        adapts = key.stride > 0 and place % key.stride == 0
        reverted = False
        if adapts:
            session.reset()
            reverted = bool(session.adapt(pair.blurred, key.steps, key.scope, step_size).reverted)
        found = measure(session.restore(pair.blurred), pair.sharp)
        before = measure(pair.blurred, pair.sharp).psnr
        rows.append(
            FrameRow(
                clip.model.name,
                key,
                place,
                frame.name,
                blurred_psnr=before,
                psnr=found.psnr,
                ssim=found.ssim,
                adapted=adapts,
                reverted=reverted,
            )
        )
        done()
    session.reset()
    return rows


class ClipTable:
    """The rows of clips, in memory and in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        """Read ``path``, if it exists; a clip that was cut short is dropped.

        Raises:
            ConfigError: if it is a file of something else.
        """
        self._file = RowFile(path, FrameRow)
        self._rows: dict[ClipKey, list[FrameRow]] = {}
        for row in self._file.rows:
            self._rows.setdefault(row.key, []).append(row)
        self._file.rewrite([row for rows in self._rows.values() for row in rows])

    def get(self, clip: Clip) -> list[FrameRow] | None:
        """The rows of a clip, or None if they are not all there."""
        rows = self._rows.get(clip.key, [])
        return rows if [row.frame for row in rows] == list(range(len(clip.frames))) else None

    def add(self, clip: Clip, rows: Sequence[FrameRow]) -> None:
        """Keep the rows of a clip in the place of a part of it, and write them at once."""
        partial = clip.key in self._rows
        self._rows[clip.key] = list(rows)
        if partial:
            self._file.rewrite([row for rows in self._rows.values() for row in rows])
        else:
            self._file.add(rows)


def measure_clips(
    clips: Sequence[Clip], settings: Settings, table: ClipTable, done: Callable[[], None]
) -> list[list[FrameRow]]:
    """The rows of every clip; those that the table has are not measured again."""
    result = []
    with one_session(settings) as session_of:
        for clip in clips:
            rows = table.get(clip)
            if rows is None:
                session = session_of(clip.model.bundle)
                rows = measure_clip(session, clip, settings.step_size, done)
                table.add(clip, rows)
            result.append(rows)
    return result


def summarize_strides(
    clips: Sequence[Clip], rows: Sequence[Sequence[FrameRow]]
) -> list[StrideSummary]:
    """One summary for each model and stride, in their order; ``rows`` are those of the clips."""
    groups: dict[tuple[str, int], list[FrameRow]] = {}
    for clip, own in zip(clips, rows, strict=True):
        groups.setdefault((clip.model.name, clip.key.stride), []).extend(own)
    return [_summarize(*group, found) for group, found in groups.items()]


def _summarize(model: str, stride: int, rows: Sequence[FrameRow]) -> StrideSummary:
    recordings = [row.key.recording for row in rows]
    blurred = [Mean(row.blurred_psnr, 0.0) for row in rows]
    return StrideSummary(
        model=model,
        stride=stride,
        frames=len(rows),
        recordings=len(set(recordings)),
        blurred=mean_quality(blurred, recordings).psnr,
        quality=mean_quality(rows, recordings),
        adapted=sum(row.adapted for row in rows),
        reverted=sum(row.reverted for row in rows),
    )


def _key(model: Model, settings: Settings, stride: int, recording: str, files: str) -> ClipKey:
    own = model.bundle.manifest.adaptation.steps
    steps = own if settings.steps is None else settings.steps
    return ClipKey(
        bundle=bundle_digest(model.bundle),
        backend=settings.backend,
        precision=settings.precision,
        scope=settings.scope,
        step_size="" if settings.step_size is None else repr(settings.step_size),
        steps=steps if stride else 0,  # plain inference is the same for every K
        stride=stride,
        recording=recording,
        files=files,
    )
