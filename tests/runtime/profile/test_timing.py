from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.runtime import session as session_module
from edgeadapt.runtime.backend import EngineOptions
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.profile.timing import Plan, TimedSession, Watch, measure
from edgeadapt.runtime.session import Session
from edgeadapt.testing import photo
from support.host_device import HostDevice

ENGINES = ("native", "onnxruntime")
IMAGE = photo(3, 21, 34)


@pytest.fixture(params=ENGINES)
def timed(request: Any, tiny: Path) -> Any:
    with TimedSession(open_bundle(tiny), request.param, EngineOptions()) as found:
        assert found.backend == request.param
        yield found


def kinds(run: Any) -> list[str]:
    return [phase.kind for phase in run.phases]


def check_order(run: Any) -> None:
    """Phases follow one another within the run."""
    moments = [run.begin, *(t for p in run.phases for t in (p.begin, p.end)), run.end]
    assert moments == sorted(moments)


def test_a_run_is_an_image_in_the_steps_and_an_image_out(timed: TimedSession) -> None:
    run = timed.run_once(IMAGE, 2, "all", time.perf_counter())
    # Two steps and the loss after them, then the restoration, to which the image goes in again.
    assert kinds(run) == ["in", "compute", "compute", "compute", "in", "compute", "out"]
    check_order(run)
    assert run.enqueue is None
    assert run.latency >= sum(run.seconds(kind) for kind in ("in", "compute", "out"))


def test_without_steps_it_is_a_restoration(timed: TimedSession) -> None:
    assert kinds(timed.run_once(IMAGE, 0, "all", 0.0)) == ["in", "compute", "out"]


def test_each_run_starts_from_the_bundles_weights_and_does_what_a_session_does(
    timed: TimedSession, tiny: Path
) -> None:
    for _ in range(2):
        timed.run_once(IMAGE, 3, "all", 0.0)
    with Session(tiny, timed.backend) as plain:
        plain.adapt(IMAGE, 3)
        assert np.array_equal(timed.weights, plain.weights)
        assert np.array_equal(timed.restore(IMAGE), plain.restore(IMAGE))


@pytest.mark.parametrize(
    ("plan", "least"), [(Plan(0.0, 0.0, 4), 4), (Plan(0.0, 0.05, 1), 2), (Plan(0.05, 0.0, 1), 1)]
)
def test_it_runs_as_often_and_as_long_as_asked(timed: Any, plan: Plan, least: int) -> None:
    found = measure(timed, IMAGE, 1, "all", plan)
    assert len(found.runs) >= least
    assert found.runs[-1].end >= plan.duration
    assert found.warm_up_seconds >= plan.warm_up
    assert found.warm_ups >= 1
    assert found.walltime == found.runs[-1].end - found.runs[0].begin
    begins = [run.begin for run in found.runs]
    assert begins == sorted(begins)


def test_it_idles_between_two_runs_and_not_after_the_last(timed: Any) -> None:
    found = measure(timed, IMAGE, 0, "all", Plan(0.0, 0.0, 3, idle=0.03))
    runs = found.runs
    gaps = [later.begin - earlier.end for earlier, later in pairwise(runs)]
    assert min(gaps) >= 0.03
    assert found.walltime >= 0.06


def on_host(tiny: Path, monkeypatch: pytest.MonkeyPatch, device: HostDevice) -> TimedSession:
    """A session on a GPU that the host imitates."""

    def opened(name: str, *arguments: Any) -> CudaBackend:
        return CudaBackend(*arguments, device=device)

    monkeypatch.setattr(session_module, "open_backend", opened)
    return TimedSession(open_bundle(tiny), "cuda", EngineOptions())


def test_on_a_gpu_phases_are_timed_by_its_own_moments(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()
    with on_host(tiny, monkeypatch, device) as session:
        session.run_once(IMAGE, 2, "all", 0.0)
        marks = device.asked["mark"]
        run = session.run_once(IMAGE, 2, "all", time.perf_counter())
        # All steps are one graph: one phase, in which the loss after them is found too.
        assert kinds(run) == ["in", "compute", "compute", "compute", "in", "compute", "out"]
        # Two for each phase, and the engine's own around its steps.
        assert device.asked["mark"] - marks == 2 * len(run.phases) + 2
        assert run.enqueue is not None
        host = sum(p.end - p.begin for p in run.phases if p.kind == "compute")
        assert 0 <= run.enqueue < host
        check_order(run)


class Clock:
    """A device whose waiting takes a known time."""

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1
        time.sleep(0.05)

    def mark(self) -> Any:
        class Moment:
            def seconds_since(self, earlier: Any) -> float:
                return 0.125

        return Moment()


def test_what_the_host_waits_for_a_device_is_not_its_own_work() -> None:
    device = Clock()
    watch = Watch(device)
    with watch.at("in"):
        device.synchronize()
    with watch.at("compute"):
        time.sleep(0.02)
        device.synchronize()
    phases, enqueue = watch.phases(0.0)
    assert device.waits == 2
    assert [phase.seconds for phase in phases] == [0.125, 0.125]
    assert enqueue is not None
    computing = phases[1].end - phases[1].begin
    assert 0.02 <= enqueue <= computing - 0.05
