"""Many images through one session, where an image that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from edgeadapt.errors import EdgeadaptError
from edgeadapt.image import read_image, write_image
from edgeadapt.runtime.inputs import Job
from edgeadapt.runtime.quality import Quality, measure
from edgeadapt.runtime.session import U8, Session


@dataclass(frozen=True)
class Settings:
    """How to adapt; None takes what the bundle says."""

    steps: int
    scope: str = "all"
    step_size: float | None = None
    every: int = 1  # adapt to every J-th image and reuse the weights between (the paper, Sec. 4.6)
    keep_steps: bool = False


@dataclass(frozen=True)
class Result:
    """What became of one image; the images themselves are on disk."""

    job: Job
    height: int = 0
    width: int = 0
    losses: tuple[float, ...] = ()  # of this image's own adaptation; () if it had none
    step_seconds: tuple[float, ...] = ()
    restore_seconds: float = 0.0
    reverted: str = ""
    before: Quality | None = None  # of the image that came in
    after: Quality | None = None  # of the restored image
    error: str = ""


def process(session: Session, jobs: Sequence[Job], settings: Settings) -> Iterator[Result]:
    """Adapt, restore and write each image, one result each in their order.

    An adaptation starts from the bundle's weights and serves the images until the next: the first,
    and each whose position is a multiple of ``settings.every``. If such an image cannot be read,
    the next one takes its turn.
    """
    due = True
    for index, job in enumerate(jobs):
        due = due or index % settings.every == 0
        try:
            image = read_image(job.source)
            reference = None if job.reference is None else read_image(job.reference)
            before = None if reference is None else measure(image, reference)
            yield _process_one(session, job, image, reference, before, settings, adapt=due)
            due = False
        except EdgeadaptError as error:
            yield Result(job, error=_naming(job, str(error)))
        except MemoryError:
            hint = "Hint: give a smaller image or a smaller scope."
            yield Result(job, error=f"{job.source}: out of memory. {hint}")
        except OSError as error:
            yield Result(job, error=f"{job.target}: cannot be written ({error}).")


def _naming(job: Job, text: str) -> str:
    """``text``, with the image before it unless it begins with one of the job's files."""
    own = tuple(f"{path}: " for path in (job.source, job.target, job.reference) if path)
    return text if text.startswith(own) else f"{job.source}: {text}"


def _process_one(
    session: Session,
    job: Job,
    image: U8,
    reference: U8 | None,
    before: Quality | None,
    settings: Settings,
    adapt: bool,
) -> Result:
    losses: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    images: tuple[U8, ...] = ()
    reverted = ""
    if adapt:
        session.reset()
    if adapt and settings.steps:
        done = session.adapt(
            image, settings.steps, settings.scope, settings.step_size, settings.keep_steps
        )
        losses, seconds, images = done.losses, done.step_seconds, done.restored_steps
        reverted = done.reverted
    begin = perf_counter()
    restored = session.restore(image)
    restore_seconds = perf_counter() - begin
    job.target.parent.mkdir(parents=True, exist_ok=True)
    for step, kept in enumerate(images):
        write_image(job.step_target(step), kept)
    write_image(job.target, restored)
    return Result(
        job,
        height=image.shape[0],
        width=image.shape[1],
        losses=losses,
        step_seconds=seconds,
        restore_seconds=restore_seconds,
        reverted=reverted,
        before=before,
        after=None if reference is None else measure(restored, reference),
    )
