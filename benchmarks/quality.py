"""What adaptation is worth: PSNR and SSIM of an image before, and after each step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace

from edgeadapt.benchmarks.rows import INPUT, Key, Row, Table
from edgeadapt.benchmarks.samples import Sample
from edgeadapt.blur import Frame, Pair
from edgeadapt.bundle import Bundle
from edgeadapt.errors import ConfigError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Session, loss_rose
from edgeadapt.testing import psnr


@dataclass(frozen=True)
class Settings:
    """How every model is adapted; None takes what its bundle says."""

    steps: int | None = None
    scope: str = "all"
    step_size: float | None = None
    backend: str = "auto"
    threads: int | None = None
    precision: Precision = "fp32"

    def open(self, bundle: Bundle) -> Session:
        """A session of ``bundle`` that computes so."""
        return Session(bundle, self.backend, self.threads, self.precision)


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle under its name in tables and plots."""

    name: str
    bundle: Bundle
    control: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """One image for one model under one shift."""

    model: Model
    shift: str
    sample: Sample
    key: Key


def make_models(bundles: Sequence[Bundle], controls: Sequence[Bundle]) -> list[Model]:
    """Models and controls; a control is adapted exactly as the first model of its network.

    The negative control is the jointly trained model under the adaptation of the meta-trained one
    (the paper, Sec. 4.4): steps, optimizer and step sizes are taken from that bundle.

    Raises:
        ConfigError: if no bundle has the parameters of a control.
    """
    models = [Model(bundle.path.resolve().stem, bundle) for bundle in bundles]
    for control in controls:
        table = [(row.name, row.shape) for row in control.manifest.parameters]
        same = [b for b in bundles if [(r.name, r.shape) for r in b.manifest.parameters] == table]
        if not same:
            raise ConfigError(
                f"{control.path}: no BUNDLE has the parameters of this control.",
                "a control is the same network with other weights.",
            )
        manifest = replace(control.manifest, adaptation=same[0].manifest.adaptation)
        name = f"{control.path.resolve().stem} (control)"
        models.append(Model(name, Bundle(control.path, manifest), control=True))
    return _with_distinct_names(models)


def plan(
    models: Sequence[Model], samples: Sequence[Sample], shifts: Sequence[str], settings: Settings
) -> list[Task]:
    """Every image under every shift for every model, in the order of the work."""
    digests = [sample.digest() for sample in samples]
    return [
        Task(model, shift, sample, _key(model, shift, sample, digest, settings))
        for model in models
        for shift in shifts
        for sample, digest in zip(samples, digests, strict=True)
    ]


def run(
    tasks: Sequence[Task], settings: Settings, table: Table, done: Callable[[], None]
) -> list[list[Row]]:
    """The rows of every task; those that the table has are not measured again.

    ``done`` is called after each image that is measured.
    """
    result = []
    with one_session(settings) as session_of:
        for task in tasks:
            rows = table.get(task.key)
            if rows is None:
                rows = measure_image(session_of(task.model.bundle), task, settings.step_size)
                table.add(task.key, rows)
                done()
            result.append(rows)
    return result


@contextmanager
def one_session(settings: Settings) -> Iterator[Callable[[Bundle], Session]]:
    """Gives the session of a bundle, which stays open until that of another is asked for."""
    with ExitStack() as stack:
        session: Session | None = None

        def session_of(bundle: Bundle) -> Session:
            nonlocal session
            if session is None or session.bundle is not bundle:
                stack.close()
                session = stack.enter_context(settings.open(bundle))
            return session

        yield session_of


def measure_image(session: Session, task: Task, step_size: float | None) -> list[Row]:
    """The blurred image, and what the session gives after 0, 1, ... K steps.

    Where an adaptation of so many steps would be taken back, that is plain inference again.
    """
    pair = task.sample.load(task.shift)
    done = session.adapt(pair.blurred, task.key.steps, task.key.scope, step_size, keep_steps=True)
    session.reset()  # the next image starts from the bundle's weights too
    images = list(done.restored_steps) or [session.restore(pair.blurred)]
    rows = [_row(task, INPUT, pair, pair.blurred)]
    for step in range(task.key.steps + 1):
        loss = done.losses[step] if step < len(done.losses) else None
        broken = step >= len(images) or loss is None
        reverted = step > 0 and (broken or loss_rose(done.losses[0], done.losses[step]))
        if reverted:
            raw = psnr(images[step], pair.sharp) if step < len(images) else None
            rows.append(replace(rows[1], step=step, loss=loss, reverted=True, raw_psnr=raw))
        else:
            rows.append(_row(task, step, pair, images[step], loss))
    return rows


def _row(task: Task, step: int, pair: Pair, image: Frame, loss: float | None = None) -> Row:
    found = measure(image, pair.sharp)
    return Row(
        task.model.name,
        task.key,
        step,
        psnr=found.psnr,
        ssim=found.ssim,
        loss=loss,
        reverted=False,
        raw_psnr=found.psnr,
    )


def _key(model: Model, shift: str, sample: Sample, digest: str, settings: Settings) -> Key:
    steps = model.bundle.manifest.adaptation.steps if settings.steps is None else settings.steps
    return Key(
        bundle=bundle_digest(model.bundle),
        backend=settings.backend,
        precision=settings.precision,
        scope=settings.scope,
        step_size="" if settings.step_size is None else repr(settings.step_size),
        steps=steps,
        shift=shift,
        recording=sample.recording,
        image=sample.name,
        files=digest,
    )


def bundle_digest(bundle: Bundle) -> str:
    """16 hexadecimal digits of all that decides a result: weights, graphs, adaptation."""
    manifest = bundle.manifest
    parts = [dict(manifest.files), asdict(manifest.adaptation)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _with_distinct_names(models: list[Model]) -> list[Model]:
    """Folders of one name are told apart by the folders that they lie in."""
    names = [model.name for model in models]
    return [
        replace(model, name=f"{model.bundle.path.resolve().parent.name}/{model.name}")
        if names.count(model.name) > 1
        else model
        for model in models
    ]
