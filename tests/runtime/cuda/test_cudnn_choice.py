"""Which convolutions cuDNN computes, and what is remembered of that."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.cuda import cudnn_measure
from edgeadapt.runtime.cuda.cudnn_cache import (
    OWN,
    CacheWarning,
    Choice,
    cache_key,
    keep_choice,
    read_choice,
)
from edgeadapt.runtime.cuda.cudnn_calls import open_engines
from edgeadapt.runtime.cuda.cudnn_choice import Engines, UnmeasuredWarning, by_rule
from edgeadapt.runtime.cuda.cudnn_conv import Convolution
from edgeadapt.runtime.cuda.cudnn_measure import LEAST_GAIN, measure
from edgeadapt.runtime.cuda.cudnn_plans import Cudnn, CudnnError, open_cudnn
from edgeadapt.runtime.cuda.device import DeviceInfo
from edgeadapt.runtime.plan.ir import Program
from support.convolutions import image, plain, weight_grad
from support.fake_cudnn import FakeCudnn
from support.host_device import ORIN, HostDevice
from support.programs import Builder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, fake_cudnn: FakeCudnn) -> dict[str, float]:
    """Seconds that plans, and own kernels as "", take."""
    seconds = {OWN: 1.0, "eng1": 0.5, "eng3": 0.25}

    def of(device: Any, work: Any) -> float:
        fake_cudnn.executed.clear()
        work()
        device.synchronize()
        return seconds[fake_cudnn.executed[-1] if fake_cudnn.executed else OWN]

    monkeypatch.setattr(cudnn_measure, "seconds_of", of)
    return seconds


@pytest.mark.parametrize(
    ("wrong", "own", "chosen"),
    [(set(), 1.0, "eng3"), ({"eng3"}, 1.0, "eng1"), ({"eng1", "eng3"}, 1.0, OWN),
     (set(), 0.25, OWN), ({"eng3"}, 0.4, OWN)],
)  # fmt: skip
@pytest.mark.parametrize("what", [plain(compute="tf32"), weight_grad(compute="tf32")])
def test_the_fastest_that_is_right_is_chosen(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, clock: Any, what: Any, wrong: Any, own: float, chosen: str
) -> None:
    fake_cudnn.wrong, clock[OWN] = wrong, own
    assert measure(cudnn, what)[0].plan == chosen
    # Without the order that differs from run to run, and by far too little for the tolerance.
    fake_cudnn.wrong, fake_cudnn.restless = set(), wrong
    choice, plan = measure(cudnn, what)
    assert choice.plan == (OWN if plan is None else plan.name) == chosen


def test_times_are_of_recorded_graphs(cudnn: Cudnn) -> None:
    assert measure(cudnn, plain())[0].own_seconds is not None


def engines(cudnn: Cudnn, folder: Path, mode: str = "measure") -> tuple[Engines, list[Any]]:
    asked: list[Any] = []

    def fixed(_: Cudnn, what: Convolution) -> Any:
        asked.append(what)
        plans = {plan.name: plan for plan in cudnn.candidates(what)}
        return (Choice("eng1", 2.0, 1.0), plans["eng1"]) if plans else (Choice(OWN), None)

    return Engines(cudnn, fixed, mode, folder), asked


def test_a_choice_is_remembered(cudnn: Cudnn, tmp_path: Path) -> None:
    for count in (1, 0):
        made, asked = engines(cudnn, tmp_path)
        for _ in range(2):
            plan = made.plan(plain())
            assert plan is not None
            assert plan.name == "eng1"
        assert len(asked) == count


@pytest.mark.parametrize("text", ["", "[]", "{}", "\0", '{"key": 1, "choice": {}, "sum": 2}'])
def test_damaged_choices_are_measured_again(cudnn: Cudnn, tmp_path: Path, text: str) -> None:
    engines(cudnn, tmp_path)[0].plan(plain())
    (kept,) = tmp_path.iterdir()
    kept.write_text(text)
    made, asked = engines(cudnn, tmp_path)
    with pytest.warns(CacheWarning, match="is not used"):
        assert made.plan(plain()) is not None
    assert len(asked) == 1


def test_a_changed_choice_is_measured_again(cudnn: Cudnn, tmp_path: Path) -> None:
    engines(cudnn, tmp_path)[0].plan(plain())
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text().replace("eng1", "eng3"))
    made, asked = engines(cudnn, tmp_path)
    with pytest.warns(CacheWarning, match="is not used"):
        made.plan(plain())
    assert len(asked) == 1


def test_another_cudnn_measures_for_itself(cudnn: Cudnn, tmp_path: Path) -> None:
    engines(cudnn, tmp_path)[0].plan(plain())
    cudnn.version = "99"
    made, asked = engines(cudnn, tmp_path)
    made.plan(plain())
    assert len(asked) == 1


@pytest.mark.parametrize("where", ["validate", "build_operation_graph", "create_execution_plans"])
def test_what_cudnn_refuses_is_an_own_kernels_from_then_on(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path, where: str
) -> None:
    fake_cudnn.failing = {where}
    with pytest.raises(CudnnError, match=where):
        list(cudnn.candidates(plain()))
    assert Engines(cudnn, measure, folder=tmp_path).plan(plain()) is None
    (kept,) = tmp_path.iterdir()
    assert where in json.loads(kept.read_text())["choice"]["refused"]
    fake_cudnn.failing = set()
    made, asked = engines(cudnn, tmp_path)
    assert made.plan(plain()) is None
    assert not asked


def test_what_fails_for_want_of_memory_is_not_remembered(cudnn: Cudnn, tmp_path: Path) -> None:
    def full(_: Cudnn, what: Convolution) -> Any:
        raise BackendError("no memory")

    assert Engines(cudnn, full, folder=tmp_path).plan(plain()) is None
    assert not list(tmp_path.iterdir())


def test_what_a_lost_device_refuses_is_not_remembered(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path
) -> None:
    def lost() -> None:
        raise BackendError("the device is lost")

    fake_cudnn.failing = {"validate"}
    cudnn.device.synchronize = lost  # type: ignore[method-assign]
    assert Engines(cudnn, measure, folder=tmp_path).plan(plain()) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["measure", "rule"])
def test_a_plan_is_built_once_for_all_processes(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path, mode: str
) -> None:
    images = tuple((role, image(32, 6, 5, "f16")) for role in ("x", "y"))
    what = replace(plain("f16"), filter=(32, 32, 3, 3), images=images)
    assert engines(cudnn, tmp_path, mode)[0].plan(what) is not None
    fake_cudnn.builds.clear()
    made, asked = engines(cudnn, tmp_path, mode)
    plan = made.plan(what)
    assert plan is not None
    assert (plan.name, asked, fake_cudnn.builds) == ("eng1", [], [])


def test_a_plan_that_cannot_be_loaded_is_built_again(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path
) -> None:
    engines(cudnn, tmp_path)[0].plan(plain())
    before = [file.read_bytes() for file in tmp_path.iterdir()]
    made, asked = engines(cudnn, tmp_path)
    fake_cudnn.failing = {"deserialize"}
    with pytest.warns(CacheWarning, match="cannot be loaded.*built instead"):
        assert made.plan(plain()) is not None
    assert not asked
    fake_cudnn.failing = set()
    assert [file.read_bytes() for file in tmp_path.iterdir()] != before
    for count in (1, 0):
        fake_cudnn.builds.clear()
        engines(cudnn, tmp_path)[0].plan(plain())
        assert len(fake_cudnn.builds) == count


def test_a_plan_that_is_gone_is_measured_anew(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path
) -> None:
    engines(cudnn, tmp_path)[0].plan(plain())
    fake_cudnn.failing, fake_cudnn.unbuilt = {"deserialize"}, {"eng1"}
    made, asked = engines(cudnn, tmp_path)
    with pytest.warns(CacheWarning):
        assert made.plan(plain()) is None
    assert len(asked) == 1


def test_a_cudnn_that_gives_no_plan_away_keeps_its_choice(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path
) -> None:
    fake_cudnn.failing = {"serialize"}
    for count in (1, 0):
        made, asked = engines(cudnn, tmp_path)
        assert made.plan(plain()) is not None
        assert len(asked) == count


def test_a_folder_that_cannot_be_written_costs_only_time(cudnn: Cudnn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        made, asked = engines(cudnn, tmp_path / "file")
        with pytest.warns(CacheWarning):
            assert made.plan(plain()) is not None
        assert len(asked) == 1


def two_sizes() -> Program:
    """A small convolution, then the same one twice on more pixels."""
    b = Builder()
    for number, size in enumerate(((4, 4), (8, 8), (8, 8))):
        b.tensor(f"w{number}", (8, 8, 3, 3), storage="weights")
        for name in ("x", "y"):
            b.tensor(f"{name}{number}", (1, 8, *size))
        b.conv(f"x{number}", f"w{number}", f"y{number}", {}, slope=None, out_channels=(0, 8))
    found = b.program("y0", "y1", "y2")
    tensors = {
        name: replace(tensor, channels_last=tensor.storage == "arena")
        for name, tensor in found.tensors.items()
    }
    return replace(found, tensors=tensors)


def test_when_time_is_over_the_largest_are_measured_and_the_next_process_goes_on(
    cudnn: Cudnn, tmp_path: Path
) -> None:
    made, asked = engines(cudnn, tmp_path)
    made.seconds = 1e-9
    with pytest.warns(UnmeasuredWarning, match="1 of 2 convolutions stay with own kernels"):
        chosen = made.choose(two_sizes())
    assert [what.image("x").shape[2:] for what in asked] == [(8, 8)]
    assert ["algorithm" in op.attributes for op in chosen] == [False, True, True]
    made, asked = engines(cudnn, tmp_path)
    assert all("algorithm" in op.attributes for op in made.choose(two_sizes()))
    assert [what.image("x").shape[2:] for what in asked] == [(4, 4)]


def test_what_is_remembered_takes_no_time(cudnn: Cudnn, tmp_path: Path) -> None:
    engines(cudnn, tmp_path)[0].choose(two_sizes())
    made, asked = engines(cudnn, tmp_path)
    made.seconds = 0.0
    assert all("algorithm" in op.attributes for op in made.choose(two_sizes()))
    assert not asked


@pytest.mark.parametrize("text", ["", "long", "-1", "nan", "inf"])
def test_what_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EDGEADAPT_CUDNN_SECONDS", text)
    with pytest.raises(ConfigError, match="must be a number of seconds"):
        open_engines(HostDevice())


@pytest.mark.usefixtures("fake_cudnn")
def test_seconds_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEADAPT_CUDNN_SECONDS", "7.5")
    found = open_engines(HostDevice())
    assert found is not None
    assert found.seconds == 7.5


def test_the_rule_wants_tensor_cores_and_channels(cudnn: Cudnn, tmp_path: Path) -> None:
    wide = plain("f16", filter=(32, 32, 3, 3))
    assert by_rule(wide)
    assert not by_rule(plain("f16"))
    assert not by_rule(replace(wide, compute="f32"))
    made, asked = engines(cudnn, tmp_path, "rule")
    assert made.plan(plain("f16")) is None
    assert not asked
    assert not list(tmp_path.iterdir())


NUMBERS = st.none() | st.floats(0, 1e3)
CHOICES = st.builds(
    Choice, st.text(max_size=30), NUMBERS, NUMBERS, st.text(max_size=30),
    st.none() | st.binary(max_size=60),
)  # fmt: skip
INFOS = st.builds(
    DeviceInfo,
    st.sampled_from(["Orin", "H200"]),
    st.sampled_from([(8, 7), (9, 0)]),
    st.just(8 << 30),
    st.integers(1, 3),
    unified=st.just(False),
    driver=st.tuples(st.integers(12, 13), st.integers(0, 1)),
)
WHATS = st.sampled_from([plain(), plain("f16"), weight_grad(), weight_grad(bias_of="x")])
CIRCUMSTANCES = st.tuples(
    INFOS, st.sampled_from(["9.1", "9.28"]), st.sampled_from(["measure", "rule"]), WHATS
)


@given(CHOICES, CIRCUMSTANCES, CIRCUMSTANCES)
def test_what_is_kept_is_read_again_in_the_same_circumstances_only(
    choice: Choice, now: Any, later: Any
) -> None:
    key, other = cache_key(*now), cache_key(*later)
    with tempfile.TemporaryDirectory() as name:
        keep_choice(Path(name), key, choice)
        assert read_choice(Path(name), key) == choice
        assert (read_choice(Path(name), other) == choice) == (now == later)
        assert len(list(Path(name).iterdir())) == 1


@pytest.mark.parametrize(
    "changed",
    [
        (replace(ORIN, name="another"), "9.28", "measure", plain()),
        (replace(ORIN, capability=(9, 0)), "9.28", "measure", plain()),
        (replace(ORIN, multiprocessors=8), "9.28", "measure", plain()),
        (replace(ORIN, driver=(12, 9)), "9.28", "measure", plain()),
        (replace(ORIN, libraries=(("nvrtc", "13.1"),)), "9.28", "measure", plain()),
        (ORIN, "9.27", "measure", plain()),
        (ORIN, "9.28", "rule", plain()),
        (ORIN, "9.28", "measure", plain(slope=0.1)),
        (ORIN, "9.28", "measure", weight_grad()),
    ],
)
def test_each_circumstance_alone_is_another(changed: Any) -> None:
    assert cache_key(*changed) != cache_key(ORIN, "9.28", "measure", plain())


@given(CHOICES, st.data())
def test_no_damage_is_taken_for_a_choice(choice: Choice, data: st.DataObject) -> None:
    key = cache_key(ORIN, "9.28", "measure", plain())
    with tempfile.TemporaryDirectory() as name:
        keep_choice(Path(name), key, choice)
        (kept,) = Path(name).iterdir()
        whole = kept.read_bytes()
        first = data.draw(st.integers(0, len(whole) - 1))
        last = data.draw(st.integers(first, min(first + 40, len(whole))))
        damaged = whole[:first] + data.draw(st.binary(max_size=40)) + whole[last:]
        kept.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_choice(Path(name), key)
        assert found in (None, choice)
        assert bool(said) == (found is None)


SECONDS = st.floats(1e-6, 1e-2)


@given(
    own=SECONDS,
    seconds=st.tuples(SECONDS, SECONDS, SECONDS),
    wrong=st.sets(st.sampled_from(["eng1", "eng3", "eng4"])),
    restless=st.sets(st.sampled_from(["eng1", "eng3", "eng4"])),
    unbuilt=st.sets(st.sampled_from(["eng1", "eng3", "eng4"])),
    late_only=st.booleans(),
)
@settings(max_examples=30)
def test_whatever_engines_do_the_fastest_sound_one_is_taken_and_found_again(
    own: float, seconds: Any, wrong: Any, restless: Any, unbuilt: Any, late_only: bool
) -> None:
    times = {OWN: own, **dict(zip(("eng1", "eng3", "eng4"), seconds, strict=True))}
    fake = FakeCudnn()
    fake.plans.append(("eng4", None))
    fake.wrong, fake.restless, fake.unbuilt = wrong, restless, unbuilt
    fake.late_only = late_only
    what = weight_grad(compute="tf32", bias_of="")

    def timed(device: Any, work: Any) -> float:
        fake.executed.clear()
        work()
        device.synchronize()
        return times[fake.executed[-1] if fake.executed else OWN]

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setitem(sys.modules, "cudnn", fake)
        patch.setattr(cudnn_measure, "seconds_of", timed)
        cudnn = open_cudnn(HostDevice())
        assert cudnn is not None
        found = [Engines(cudnn, measure, folder=Path(name)).plan(what) for _ in range(2)]
    sound = {"eng1", "eng3", "eng4"} - wrong - restless - unbuilt
    gains = [engine for engine in sound if times[engine] <= LEAST_GAIN * own]
    wanted = min((times[engine] for engine in gains), default=None)
    for plan in found:
        assert (None if plan is None else times[plan.name.split()[0]]) == wanted
