"""Takes the time of a step of adaptation, or of a restoration, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from time import perf_counter

import numpy as np

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.image import padded_size
from edgeadapt.runtime.backend import Backend, EngineOptions, Frame
from edgeadapt.runtime.backends import open_backend
from edgeadapt.runtime.optimizer import make_optimizer
from edgeadapt.runtime.profile.parts import Part, Profile, median_index
from edgeadapt.runtime.profile.profiler import Profiled, Profiler, Record
from edgeadapt.testing import photo

# So small a step that no weight changes: every repetition does the same. Not 0, of which an engine
# would know that nothing is to be done; and not smaller, whose products would be denormal.
STILL = 1e-20
WARM_UPS = 2  # runs before the first that counts, of either kind

_Work = Callable[[], object]
_Prepare = Callable[[Backend, Profiled, Frame], tuple[Profiler, _Work]]


def profile_step(
    bundle: Bundle,
    *,
    backend: str,
    scope: str,
    height: int,
    width: int,
    options: EngineOptions | None = None,
    repetitions: int = 10,
) -> Profile:
    """Measure one step of adapting ``scope`` with the bundle's own optimizer.

    The image is a seeded picture of ``height`` x ``width`` pixels, padded as a session pads it.
    Steps are too small to change a weight. Runs with profiling and without take turns; ``WARM_UPS``
    of each are not counted.

    Raises:
        BackendError: if there is no such backend, it cannot run the bundle, or cannot be profiled.
        ConfigError: if an option is out of range.
    """
    weights = bundle.weights()
    gradients = np.zeros_like(weights)
    optimizer = make_optimizer(bundle, weights, gradients, scope, STILL)

    def prepare(engine: Backend, profiled: Profiled, frame: Frame) -> tuple[Profiler, _Work]:
        engine.prepare(scope, frame, optimizer)
        profiler = profiled.step_profiler(scope, frame, optimizer)
        return profiler, lambda: engine.step(scope, frame, optimizer)

    settings = options or EngineOptions()
    engine = open_backend(backend, bundle, weights, gradients, settings)
    return _profile(engine, backend, bundle, (height, width), settings, repetitions, prepare)


def profile_restore(
    bundle: Bundle,
    *,
    backend: str,
    height: int,
    width: int,
    options: EngineOptions | None = None,
    repetitions: int = 10,
) -> Profile:
    """Measure one restoration with the bundle's own weights; all else as `profile_step`."""
    weights = bundle.weights()

    def prepare(engine: Backend, profiled: Profiled, frame: Frame) -> tuple[Profiler, _Work]:
        return profiled.restore_profiler(frame), lambda: engine.restore(frame)

    settings = options or EngineOptions()
    engine = open_backend(backend, bundle, weights, np.zeros_like(weights), settings)
    return _profile(engine, backend, bundle, (height, width), settings, repetitions, prepare)


def _profile(
    engine: Backend,
    backend: str,
    bundle: Bundle,
    size: tuple[int, int],
    options: EngineOptions,
    repetitions: int,
    prepare: _Prepare,
) -> Profile:
    multiple = bundle.manifest.image.size_multiple
    height, width = padded_size(*size, multiple)
    with closing(engine):
        if not isinstance(engine, Profiled):
            raise BackendError(f"the backend {backend} does not take the time of its operations.")
        frame = engine.open_frame(height, width)
        frame.put(photo(0, *size), multiple)
        profiler, plain = prepare(engine, engine, frame)
        with closing(profiler):
            whole, without = take_turns(profiler.run, plain, repetitions)
            record = profiler.record()
            graph = profiler.graph
    return Profile(
        backend,
        graph,
        height,
        width,
        options.precision,
        options.threads,
        _parts(record, whole),
        whole,
        without,
    )


def take_turns(
    first: _Work, second: _Work, repetitions: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each run of the two, in turn, so that both meet the same state of the machine.

    Who begins changes each time. ``WARM_UPS`` runs of each come first and are not in it.

    Raises:
        ConfigError: if ``repetitions`` is below 1.
    """
    if repetitions < 1:
        raise ConfigError(f"repetitions must be at least 1, got {repetitions!r}.")
    taken: tuple[list[float], list[float]] = ([], [])
    for repetition in range(-WARM_UPS, repetitions):
        order = (0, 1) if repetition % 2 == 0 else (1, 0)
        for which in order:
            begin = perf_counter()
            (first, second)[which]()
            seconds = perf_counter() - begin
            if repetition >= 0:
                taken[which].append(seconds)
    return tuple(taken[0]), tuple(taken[1])


def _parts(record: Record, whole: tuple[float, ...]) -> tuple[Part, ...]:
    """The operations with the times of the runs that count, the last ones."""
    runs = record.runs[-len(whole) :]
    assert len(runs) == len(whole), (len(record.runs), len(whole))
    median = median_index(whole)
    return tuple(
        Part(
            **vars(operation),
            begin=runs[median].begins[position],
            seconds=tuple(run.seconds[position] for run in runs),
        )
        for position, operation in enumerate(record.operations)
    )
