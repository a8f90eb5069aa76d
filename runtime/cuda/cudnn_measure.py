"""Times an own convolution and cuDNN's plans for it on the device, and compares what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from edgeadapt.errors import EdgeadaptError
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda.calls import Call
from edgeadapt.runtime.cuda.cudnn_cache import OWN, Choice
from edgeadapt.runtime.cuda.cudnn_conv import Convolution
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, Cudnn, CudnnError
from edgeadapt.runtime.cuda.cudnn_trial import Array, Trial, trial
from edgeadapt.runtime.cuda.device import Device

LEAST_GAIN = 0.97  # of the own kernel's time: what is nearly as fast stays with it
REPEATS, ROUNDS = 8, 3  # convolutions in a graph, and launches of it that are timed
# Relative distance, in the L2 norm, of results that come of the same sums in another order.
TOLERANCES: Mapping[str, float] = {"f32": 1e-5, "tf32": 2e-3, "f16": 2e-3, "bf16": 1.6e-2}


def measure(cudnn: Cudnn, what: Convolution) -> tuple[Choice, BuiltPlan | None]:
    """The fastest that gives what the own kernel gives, each time the same; the own one if cuDNN
    gains next to nothing.

    Raises:
        BackendError: if the device has no memory for it, or failed.
        CudnnError: if cuDNN does not take it.
    """
    plans = list(cudnn.candidates(what))
    with trial(cudnn, what, plans) as at:
        own = partial(_run, cudnn.device, at.own().launches)
        own_seconds = seconds_of(cudnn.device, own)
        wanted = at.results()
        works = [partial(_run, cudnn.device, at.cudnn(cudnn, plan).calls) for plan in plans]
        timed = []
        for number, work in enumerate(works):
            with suppress(CudnnError, RuntimeError):
                timed.append((seconds_of(cudnn.device, work), number))
        for seconds, number in sorted(timed):
            if seconds > LEAST_GAIN * own_seconds:
                break
            if _is_right(at, works[number], wanted):
                plan = plans[number]
                return Choice(plan.name, own_seconds, seconds), plan
    return Choice(OWN, own_seconds), None


def seconds_of(device: Device, work: Callable[[], None]) -> float:
    """Time of some work, of several in a row as one recorded graph; the shortest of some."""
    work()
    device.synchronize()

    def repeated() -> None:
        for _ in range(REPEATS):
            work()

    graph = device.capture(repeated)
    try:
        graph.launch()
        times = []
        for _ in range(ROUNDS):
            before = device.mark()
            graph.launch()
            times.append(device.mark().seconds_since(before))
        return min(times) / REPEATS
    finally:
        with suppress(EdgeadaptError):
            device.synchronize()
        graph.close()


def close(found: Array, wanted: Array, what: Convolution) -> bool:
    """Whether two results differ by no more than rounding does."""
    distance = float(np.linalg.norm(found - wanted))
    stored = what.image("y").dtype if what.result == "y" else "f32"
    tolerance = max(TOLERANCES[what.compute], TOLERANCES[stored])
    return bool(distance <= tolerance * float(np.linalg.norm(wanted)))  # false for NaN, too


def _is_right(at: Trial, work: Callable[[], None], wanted: Sequence[Array]) -> bool:
    """Whether a plan gives what is wanted, and the same bits the next time."""
    found = []
    for _ in range(2):
        at.clear()
        work()
        found.append(at.results())
    same = all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    return same and all(close(a, b, at.what) for a, b in zip(found[0], wanted, strict=True))


def _run(device: Device, calls: Sequence[Call]) -> None:
    for call in calls:
        if isinstance(call, Launch):
            device.launch(call)
            continue
        try:
            device.call(call)
        except EdgeadaptError:
            raise
        except Exception as error:  # of the frontend's kinds
            raise CudnnError(str(error)) from error
