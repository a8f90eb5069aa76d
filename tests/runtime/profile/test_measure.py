"""Taking the time of steps and restorations: what is measured, in which order, and that it adds up.

Times themselves are bounded only as far as a busy machine allows; the tight bounds are those of
`make check-profile`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.backend import EngineOptions
from edgeadapt.runtime.backends import BACKENDS
from edgeadapt.runtime.native_backend import NativeBackend
from edgeadapt.runtime.optimizer import Adam, flat_step_sizes
from edgeadapt.runtime.profile import measure
from edgeadapt.runtime.profile.measure import WARM_UPS, profile_restore, profile_step, take_turns
from edgeadapt.runtime.profile.parts import Part, Profile, median_index
from edgeadapt.runtime.profile.profiler import Profiled
from support.tiny_bundle import write_tiny_bundle

ENGINES = ["native", "onnxruntime"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step(bundle: Bundle, engine: str) -> None:
    options = EngineOptions(threads=1)
    found = profile_step(
        bundle, backend=engine, scope="heads", height=30, width=41, options=options, repetitions=3
    )
    assert (found.backend, found.graph) == (engine, "adapt.heads.onnx")
    multiple = bundle.manifest.image.size_multiple
    assert (found.height, found.width) == (
        -(-30 // multiple) * multiple,
        -(-41 // multiple) * multiple,
    )
    assert (found.precision, found.threads) == ("fp32", 1)
    assert len(found.whole) == len(found.plain) == 3
    assert len({part.name for part in found.parts}) == len(found.parts)
    assert all(len(part.seconds) == 3 and min(part.seconds) >= 0 for part in found.parts)
    groups = {part.group for part in found.parts}
    assert groups >= {"forward", "input-gradient", "weight-gradient", "pointwise", "optimizer"}
    check_times(found)


def check_times(found: Profile) -> None:
    """Parts follow one another within each run."""
    for repetition, whole in enumerate(found.whole):
        assert 0 < sum(part.seconds[repetition] for part in found.parts) <= whole
    before = 0.0
    for part in found.parts:
        assert part.begin >= before - 1e-6, part.name  # ONNX Runtime counts whole microseconds
        before = part.begin + part.seconds[found.median]
    assert before <= found.whole[found.median]
    assert 0 < found.covered <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_restoration(bundle: Bundle, engine: str) -> None:
    options = EngineOptions(threads=1)
    found = profile_restore(
        bundle, backend=engine, height=32, width=48, options=options, repetitions=2
    )
    assert found.graph == "restore.onnx"
    assert {part.group for part in found.parts} <= {"forward", "pointwise", "other"}
    check_times(found)


def test_the_native_engine_leaves_nothing_between_its_operations(bundle: Bundle) -> None:
    # Within 5 % on a quiet machine. Of several runs on a busy one, one is left alone for most of
    # the time.
    options = EngineOptions(threads=1)
    found = profile_restore(
        bundle, backend="native", height=96, width=96, options=options, repetitions=10
    )
    sums = [sum(part.seconds[i] for part in found.parts) for i in range(10)]
    assert max(s / whole for s, whole in zip(sums, found.whole, strict=True)) > 0.9


def test_adam_steps_after_the_native_program(bundle: Bundle) -> None:
    weights = bundle.weights()
    gradients = np.zeros_like(weights)
    engine = NativeBackend(bundle, weights, gradients, EngineOptions(1))
    optimizer = Adam(weights, gradients, flat_step_sizes(bundle, "heads", 1e-3))
    frame = engine.open_frame(32, 32)
    frame.image[:] = 0.5
    profiler = engine.step_profiler("heads", frame, optimizer)
    profiler.run()
    assert (weights != bundle.weights()).any()
    operations, (run,) = profiler.record()
    assert operations[-1].kind == "Adam"
    assert [o.name for o in operations if o.group == "optimizer"] == ["step of Adam by numpy"]
    assert len(run.begins) == len(run.seconds) == len(operations)
    assert run.begins[-1] >= run.begins[-2] + run.seconds[-2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_weight_changes_but_every_gradient_is_computed(
    tmp_path: Any, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(write_tiny_bundle(tmp_path / "tiny.bundle", optimizer=optimizer))
    opened: list[Any] = []
    original = measure.open_backend

    def noted(name: str, given: Bundle, weights: Any, gradients: Any, options: Any) -> Any:
        opened.append((weights, gradients))
        return original(name, given, weights, gradients, options)

    monkeypatch.setattr(measure, "open_backend", noted)
    for engine in ENGINES:
        profile_step(bundle, backend=engine, scope="all", height=8, width=8, repetitions=1)
        weights, gradients = opened.pop()
        assert (weights == bundle.weights()).all()
        assert (gradients != 0).all()


def test_both_ways_take_turns_and_the_first_runs_do_not_count() -> None:
    order: list[str] = []
    first, second = take_turns(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert len(first) == len(second) == 3
    assert "".join(order) == "abba" * 2 + "ab"
    assert len(order) == 2 * (WARM_UPS + 3)


@pytest.mark.parametrize("repetitions", [0, -1])
def test_no_repetitions_are_refused(bundle: Bundle, repetitions: int) -> None:
    with pytest.raises(ConfigError, match=f"repetitions must be at least 1, got {repetitions}"):
        profile_restore(bundle, backend="native", height=32, width=32, repetitions=repetitions)


def test_a_backend_that_takes_no_times_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        """Only what `close` needs."""

        def close(self) -> None:
            pass

    monkeypatch.setattr(measure, "open_backend", lambda *arguments: Plain())
    with pytest.raises(BackendError, match="the backend plain does not take the time"):
        profile_restore(bundle, backend="plain", height=32, width=32)


def test_native_and_onnxruntime_say_that_they_can_be_profiled() -> None:
    assert set(ENGINES) <= set(BACKENDS)
    assert issubclass(NativeBackend, Profiled)


def test_figures_of_a_profile() -> None:
    part = Part("a", "conv", "forward", 1, 1, "fp32", begin=0.0, seconds=(3.0, 1.0, 2.0, 4.0))
    other = Part("b", "conv", "forward", 1, 1, "fp32", begin=0.0, seconds=(0.5, 0.5, 1.0, 0.5))
    found = Profile(
        *("native", "restore.onnx", 8, 8, "fp32", None, (part, other)),
        whole=(5.0, 2.0, 4.0, 6.0),
        plain=(9.0, 3.0, 3.2, 1.0),
    )
    assert median_index(found.whole) == found.median == 2  # the lower of 4 and 5
    assert found.covered == pytest.approx(3 / 4)
    assert found.overhead == pytest.approx(4 / 3 - 1)
