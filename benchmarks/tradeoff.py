"""What each step of adaptation buys and what it costs: PSNR and SSIM against milliseconds.

Everything that is compared is timed in turn, image after image, so that a machine that slows down
slows down all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

from edgeadapt.benchmarks.machine import describe
from edgeadapt.benchmarks.pareto import pareto_front
from edgeadapt.benchmarks.peers import HALF, PAUSE_SECONDS, Work, make_peers
from edgeadapt.benchmarks.row_file import RowFile
from edgeadapt.benchmarks.samples import Sample
from edgeadapt.benchmarks.summary import mean_quality
from edgeadapt.blur import Frame, Pair
from edgeadapt.bundle import Bundle
from edgeadapt.errors import DataError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Session

NO_SCOPE = "-"  # of plain inference
_REFERENCE = "onnxruntime"


@dataclass(frozen=True)
class Setup:
    """One way to restore an image: what is a point of the plot."""

    bundle: str  # its name
    weights: str  # digest of weights, graphs and adaptation
    backend: str
    precision: Precision
    scope: str  # NO_SCOPE for K = 0
    steps: int  # K
    height: int  # of the image
    width: int
    threads: int
    cpu: str


@dataclass(frozen=True)
class Timing:
    """One image restored once."""

    setup: Setup
    recording: str
    image: str
    files: str  # digest of the image's files
    round: int
    milliseconds: float  # adaptation and restoration
    psnr: float
    ssim: float | None  # None for an image smaller than its window
    reverted: bool  # the adaptation was taken back
    commit: str


@dataclass(frozen=True)
class Machine:
    """The rest of `edgeadapt.benchmarks.machine.describe`."""

    commit: str
    date: str
    python: str
    edgeadapt: str
    numpy: str
    onnxruntime: str
    torch: str


@dataclass(frozen=True)
class Point:
    """What a setup costs and gives, over all images and rounds."""

    setup: Setup
    data: str  # digest of all images
    images: int
    rounds: int
    milliseconds: float  # median
    peak_mib: float | None  # None: not measured
    psnr: float  # averaged over the images of a recording, then over recordings
    ssim: float  # NaN if every image is smaller than its window
    reverted: int  # images whose adaptation was taken back
    machine: Machine


@dataclass(frozen=True)
class Engine:
    """A backend at a precision."""

    backend: str
    precision: Precision

    @property
    def name(self) -> str:
        """As `edgeadapt.benchmarks.peers` calls it."""
        return self.backend + (HALF if self.precision == "bf16" else "")


def make_setups(
    common: Setup, scopes: Sequence[str], steps: Sequence[int], engines: Sequence[Engine]
) -> list[Setup]:
    """All combinations for the bundle of ``common``; plain inference is there once an engine."""
    ways = [
        (scope, count)
        for count in sorted(set(steps))
        for scope in (scopes if count else [NO_SCOPE])
    ]
    return [
        replace(common, backend=e.backend, precision=e.precision, scope=scope, steps=count)
        for scope, count in ways
        for e in engines
    ]


def check_engines(bundle: Bundle, setups: Sequence[Setup]) -> None:
    """Hold one step and one restoration of each engine and scope to ONNX Runtime's.

    Raises:
        EdgeadaptError: if they do not agree.
    """
    default = bundle.manifest.scopes[0].name
    names: dict[str, list[str]] = {}
    for setup in setups:
        scope = default if setup.scope == NO_SCOPE else setup.scope
        name = Engine(setup.backend, setup.precision).name
        names.setdefault(scope, [_REFERENCE])
        if name not in names[scope]:
            names[scope].append(name)
    for scope, engines in names.items():
        one = setups[0]
        work = Work(str(bundle.path), one.height, one.width, scope, one.threads, factory="")
        make_peers(engines, bundle, work)


def restore_with(session: Session, setup: Setup, image: Frame) -> tuple[Frame, bool]:
    """Adapt and restore as ``setup`` says; whether the adaptation was taken back.

    The session keeps the weights.
    """
    reverted = False
    if setup.steps:
        reverted = bool(session.adapt(image, setup.steps, setup.scope).reverted)
    return session.restore(image), reverted


def time_in_turn(
    setups: Sequence[Setup],
    bundles: Mapping[str, Bundle],
    samples: Sequence[Sample],
    rounds: int,
    file: RowFile[Timing],
    done: Callable[[], None],
) -> None:
    """Add what ``file`` lacks; ``bundles`` by their digests. ``done`` is called after each.

    All sessions stay open, so that none is opened within a turn.
    """
    digests = {sample: sample.digest() for sample in samples}
    known = {(t.setup, t.recording, t.image, t.files, t.round) for t in file.rows}
    commit = describe()["commit"]
    with ExitStack() as stack:
        sessions: dict[tuple[str, str, str], Session] = {}
        for number in range(rounds):
            for sample in samples:
                key = (sample.recording, sample.name, digests[sample], number)
                missing = [setup for setup in setups if (setup, *key) not in known]
                if not missing:
                    continue
                pair = centre_crop(sample, missing[0].height, missing[0].width)
                _open(missing, bundles, sessions, stack, pair.blurred)
                for setup in missing:
                    session = sessions[_engine_key(setup)]
                    seconds, restored, reverted = _time(session, setup, pair.blurred)
                    quality = measure(restored, pair.sharp)
                    ms = round(1e3 * seconds, 3)
                    file.add(
                        [Timing(setup, *key, ms, quality.psnr, quality.ssim, reverted, commit)]
                    )
                    done()


def make_point(
    setup: Setup,
    timings: Sequence[Timing],
    data: str,
    rounds: int,
    peak_mib: float | None,
    machine: Machine,
) -> Point:
    """Median time and mean quality of one setup's timings."""
    first = [timing for timing in timings if timing.round == 0]
    mean = mean_quality(first, [timing.recording for timing in first])
    return Point(
        setup,
        data,
        images=len(first),
        rounds=rounds,
        milliseconds=round(median(timing.milliseconds for timing in timings), 3),
        peak_mib=peak_mib,
        psnr=mean.psnr,
        ssim=mean.ssim,
        reverted=sum(timing.reverted for timing in first),
        machine=machine,
    )


def best_points(points: Sequence[Point]) -> list[int]:
    """Positions of the Pareto front; a hundredth of a dB is no difference."""
    return pareto_front([p.milliseconds for p in points], [round(p.psnr, 2) for p in points])


def centre_crop(sample: Sample, height: int, width: int) -> Pair:
    """The middle of both images.

    Raises:
        DataError: if they are smaller.
    """
    pair = sample.load("none")
    have = pair.sharp.shape
    if have[0] < height or have[1] < width:
        raise DataError(
            f"{sample.sharp}: is {have[1]}x{have[0]}, smaller than {width}x{height}.",
            "choose a smaller --size: all images are cropped to it.",
        )
    top, left = (have[0] - height) // 2, (have[1] - width) // 2
    rows, cells = slice(top, top + height), slice(left, left + width)
    return Pair(pair.blurred[rows, cells].copy(), pair.sharp[rows, cells].copy())


def _time(session: Session, setup: Setup, image: Frame) -> tuple[float, Frame, bool]:
    time.sleep(PAUSE_SECONDS)
    begin = time.perf_counter()
    restored, reverted = restore_with(session, setup, image)
    seconds = time.perf_counter() - begin
    session.reset()
    return seconds, restored, reverted


def _open(
    setups: Sequence[Setup],
    bundles: Mapping[str, Bundle],
    sessions: dict[tuple[str, str, str], Session],
    stack: ExitStack,
    image: Frame,
) -> None:
    """Open the sessions that are not, and run what each will do once.

    Twice: what runs later may move what an earlier call had laid out.
    """
    fresh = [setup for setup in setups if _engine_key(setup) not in sessions]
    for setup in fresh:
        key = _engine_key(setup)
        if key not in sessions:
            bundle = bundles[setup.weights]
            session = Session(bundle, setup.backend, setup.threads, setup.precision)
            sessions[key] = stack.enter_context(session)
    short = list(dict.fromkeys(replace(setup, steps=min(1, setup.steps)) for setup in fresh))
    for setup in short + short:
        restore_with(sessions[_engine_key(setup)], setup, image)
        sessions[_engine_key(setup)].reset()


def _engine_key(setup: Setup) -> tuple[str, str, str]:
    return setup.weights, setup.backend, setup.precision
