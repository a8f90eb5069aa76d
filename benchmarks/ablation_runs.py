"""What happens to one row of an ablation: training, export, and its numbers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgeadapt.benchmarks.ablations import Ablation, Suite
from edgeadapt.benchmarks.machine import describe
from edgeadapt.benchmarks.quality import Model, Settings, make_models, plan, run
from edgeadapt.benchmarks.rows import Table
from edgeadapt.benchmarks.samples import Sample, find_samples
from edgeadapt.benchmarks.summary import Mean, Summary, mean_quality, summarize
from edgeadapt.benchmarks.video import ClipTable, make_clips, measure_clips, summarize_strides
from edgeadapt.blur import Frame
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import EdgeadaptError
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.export.source import open_source
from edgeadapt.image import from_network, to_network
from edgeadapt.runtime.quality import Quality, measure
from edgeadapt.training.checkpoint import LAST, load_checkpoint, restore_network
from edgeadapt.training.network import DeblurNet
from edgeadapt.training.processes import open_fabric
from edgeadapt.training.run import Job, Run


@dataclass(frozen=True)
class AblationRow:
    """What came of a row; numbers that it has not are empty."""

    name: str
    title: str
    group: str
    digest: str  # of the row and all that it starts from
    data: str  # digest of the images
    device: str  # that trained it
    iterations: int
    stride: str  # j of a video, 0 for plain inference; "" for single images
    steps: int  # K
    images: int
    recordings: int
    parameters: int
    blurred: float | None  # dB, as all PSNR here, averaged over recordings
    plain: float | None  # K = 0
    plain_ssim: float | None
    adapted: float | None  # after K steps
    adapted_ssim: float | None
    raw: float | None  # had no adaptation been taken back
    lowered: float | None  # share of the images that lose more than 0.05 dB
    reverted: float | None  # number of adaptations that were taken back
    failed: str  # why there are no numbers
    commit: str


@dataclass(frozen=True)
class Place:
    """Where rows are trained and measured, and on what."""

    suite: Suite
    out: Path
    data: Path
    accelerator: str
    threads: int | None
    deadline: float  # of time.monotonic()

    def folder(self, row: Ablation) -> Path:
        """Of the row's training; another configuration has another."""
        return self.out / "runs" / f"{row.name}-{row.digest[:8]}"

    def bundle(self, row: Ablation) -> Path:
        """Of the row's bundle."""
        return self.out / "bundles" / f"{row.name}.bundle"

    def samples(self) -> list[Sample]:
        """The images that rows are measured on."""
        config = self.suite.config
        return [
            sample
            for path in config.report
            for sample in find_samples(self.data / path, limit=config.limit, size=config.size)
        ]

    def clip(self) -> list[Sample]:
        """The frames that strides are measured on."""
        config = self.suite.config
        return find_samples(self.data / config.clip, size=config.size)[: config.frames]

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline


def train_row(place: Place, row: Ablation) -> bool:
    """Train until the row's iterations are done; False if the time was up before.

    Raises:
        EdgeadaptError: if the training diverges or the data do not fit.
    """
    start = place.folder(place.suite.row(row.row.start)) / LAST if row.row.start else None
    last = place.folder(row) / LAST
    if last.exists() and load_checkpoint(last).iteration >= row.iterations:
        return True
    if place.threads is not None:
        torch.set_num_threads(place.threads)
    minutes = max(0.0, place.deadline - time.monotonic()) / 60
    job = Job(row.row.stage, row.config, place.folder(row), place.data, start, True, minutes)
    training = Run(job, open_fabric(place.accelerator))
    training.train()
    return training.done >= row.iterations


def measure_row(place: Place, row: Ablation) -> list[AblationRow]:
    """The numbers of a row that has been trained."""
    if row.row.stage == "stride":
        return _measure_strides(place, row)
    if not row.config.network.aux_branch:
        return [_measure_plain(place, row)]
    model = Model(row.name, export_row(place, row))
    # A jointly trained network has learned nothing about adaptation.
    steps = 0 if row.row.stage == "joint" else None
    settings = Settings(steps, threads=place.threads)
    tasks = plan([model], place.samples(), ["none"], settings)
    rows = run(tasks, settings, Table(place.out / "images.csv"), lambda: None)
    (summary,) = summarize(tasks, rows)
    blank = empty_row(place, row, digest_of([task.sample for task in tasks]))
    return [_filled(blank, summary, tasks[0].key.steps, model.bundle)]


def export_row(place: Place, row: Ablation) -> Bundle:
    """The row's bundle, exported unless it is there with the same weights."""
    target, checkpoint = place.bundle(row), place.folder(row) / LAST
    marker = target.with_suffix(".digest")
    if target.exists() and marker.exists() and marker.read_text(encoding="utf-8") == row.digest:
        return open_bundle(target)
    source = open_source(str(checkpoint), {}, None)
    model = replace(source.model, name=row.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    bundle = export_bundle(source.network, target, ExportOptions(model, source.adaptation))
    marker.write_text(row.digest, encoding="utf-8")
    return bundle


def write_curves(place: Place) -> list[Summary]:
    """PSNR after each step of the rows in [ablations] curves, and of the control."""
    config = place.suite.config
    bundles = [export_row(place, place.suite.row(name)) for name in config.curves]
    names = [config.control] if config.control else []
    controls = [export_row(place, place.suite.row(name)) for name in names]
    models = make_models(bundles, controls)
    steps = max(bundle.manifest.adaptation.steps for bundle in bundles)
    settings = Settings(steps, threads=place.threads)
    tasks = plan(models, place.samples(), ["none"], settings)
    return summarize(tasks, run(tasks, settings, Table(place.out / "images.csv"), lambda: None))


def failed_row(place: Place, row: Ablation, error: EdgeadaptError) -> AblationRow:
    """A row without numbers."""
    return replace(empty_row(place, row, ""), failed=" ".join(str(error).split()))


def empty_row(place: Place, row: Ablation, data: str) -> AblationRow:
    """What is known of a row before it is measured."""
    return AblationRow(
        name=row.name,
        title=row.row.title,
        group=row.row.group,
        digest=row.digest,
        data=data,
        device=place.accelerator,
        iterations=row.iterations,
        stride="",
        steps=0,
        images=0,
        recordings=0,
        parameters=0,
        blurred=None,
        plain=None,
        plain_ssim=None,
        adapted=None,
        adapted_ssim=None,
        raw=None,
        lowered=None,
        reverted=None,
        failed="",
        commit=describe()["commit"],
    )


def digest_of(samples: Sequence[Sample]) -> str:
    """16 hexadecimal digits of all images in their order."""
    text = "".join(f"{s.recording}/{s.name} {s.digest()}\n" for s in samples)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def restore_plain(network: DeblurNet, image: Frame) -> Frame:
    """Restore by PyTorch, uint8 (H, W, 3): for networks that no bundle can be made of."""
    with torch.no_grad():
        restored = network.restore(torch.from_numpy(to_network(image, network.size_multiple)))
    return from_network(restored.numpy(), *image.shape[:2])


def _measure_plain(place: Place, row: Ablation) -> AblationRow:
    path = place.folder(row) / LAST
    network = restore_network(load_checkpoint(path), path).eval()
    samples = place.samples()
    before: list[Quality] = []
    after: list[Quality] = []
    for sample in samples:
        pair = sample.load("none")
        before.append(measure(pair.blurred, pair.sharp))
        after.append(measure(restore_plain(network, pair.blurred), pair.sharp))
    recordings = [sample.recording for sample in samples]
    plain = mean_quality(after, recordings)
    return replace(
        empty_row(place, row, digest_of(samples)),
        images=len(samples),
        recordings=len(set(recordings)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        blurred=mean_quality(before, recordings).psnr,
        plain=plain.psnr,
        plain_ssim=plain.ssim,
    )


def _filled(blank: AblationRow, summary: Summary, steps: int, bundle: Bundle) -> AblationRow:
    first, last = summary.steps[0], summary.steps[-1]
    row = replace(
        blank,
        steps=steps,
        images=summary.images,
        recordings=summary.recordings,
        parameters=_parameters(bundle),
        blurred=summary.blurred.psnr,
        plain=first.psnr,
        plain_ssim=first.ssim,
    )
    return row if steps == 0 else _adapted(row, last, summary)


def _adapted(row: AblationRow, last: Mean, summary: Summary) -> AblationRow:
    return replace(
        row,
        adapted=last.psnr,
        adapted_ssim=last.ssim,
        raw=summary.raw[-1],
        lowered=summary.lowered,
        reverted=float(summary.reverted),
    )


def _measure_strides(place: Place, row: Ablation) -> list[AblationRow]:
    bundle = export_row(place, place.suite.row(row.row.start))
    samples = place.clip()
    settings = Settings(threads=place.threads)
    clips = make_clips([Model(row.name, bundle)], samples, [0, *row.row.strides], settings)
    rows = measure_clips(clips, settings, ClipTable(place.out / "frames.csv"), lambda: None)
    summaries = summarize_strides(clips, rows)
    plain = summaries[0].quality
    blank = empty_row(place, row, digest_of(samples))
    return [
        replace(
            blank,
            stride=f"{summary.stride}",
            steps=bundle.manifest.adaptation.steps if summary.stride else 0,
            images=summary.frames,
            recordings=summary.recordings,
            parameters=_parameters(bundle),
            blurred=summary.blurred,
            plain=plain.psnr,
            plain_ssim=plain.ssim,
            adapted=summary.quality.psnr,
            adapted_ssim=summary.quality.ssim,
            reverted=float(summary.reverted),
        )
        for summary in summaries
    ]


def _parameters(bundle: Bundle) -> int:
    return sum(parameter.size for parameter in bundle.manifest.parameters)
