"""Convolutions that cuDNN computes: a fake of its frontend on host memory, against own kernels."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.runtime.backend import EngineOptions, Frame
from edgeadapt.runtime.cuda import cudnn_measure
from edgeadapt.runtime.cuda.cudnn_calls import makers_with
from edgeadapt.runtime.cuda.cudnn_choice import OWN, CacheWarning, Choice, Engines, by_rule
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, Layout
from edgeadapt.runtime.cuda.cudnn_measure import measure
from edgeadapt.runtime.cuda.cudnn_plans import Cudnn, CudnnError, open_cudnn
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.testing import assert_gradient_close
from support.fake_cudnn import FakeCudnn
from support.host_device import HostDevice


def image(channels: int, rows: int, columns: int, dtype: Any = "f32", pitch: int = 0) -> Layout:
    pitch = pitch or channels
    strides = (rows * columns * pitch, 1, columns * pitch, pitch)
    return Layout((1, channels, rows, columns), strides, dtype)


def plain(dtype: Any = "f32", compute: str = "", **changes: Any) -> Convolution:
    """3x3, stride 1, from 8 to 16 channels."""
    images = {"x": image(8, 6, 5, dtype), "y": image(16, 6, 5, dtype), **changes.pop("images", {})}
    found = Convolution(
        False, compute or dtype, (16, 8, 3, 3), ((1, 1), (1, 1)), (1, 1), (1, 1),
        tuple(images.items()), False, None, None,
    )  # fmt: skip
    return replace(found, **changes)


def every_operand(dtype: Any) -> dict[str, Layout]:
    return {role: image(16, 6, 5, dtype, 24) for role in ("add0", "add1", "post", "mask")}


CASES = {
    "plain": {},
    "bias and slope": {"bias": True, "slope": 0.1},
    "uneven pads": {"pads": ((2, 0), (0, 2))},
    "wide pixels": {"images": {"x": image(8, 6, 5, pitch=16), "y": image(16, 6, 5, pitch=32)}},
    "stride 2": {
        "strides": (2, 2), "images": {"y": image(16, 3, 3)}, "pads": ((1, 1), (0, 1)),
    },
    "dilated": {"dilations": (2, 1), "pads": ((2, 1), (2, 1))},
    "all in order": {
        "bias": True, "slope": 0.25, "mask_slope": 0.5, "images": every_operand("f32"),
    },
    "mask of a zero slope": {"mask_slope": 0.0, "images": {"mask": image(16, 6, 5)}},
    "transposed": {"transposed": True, "filter": (8, 16, 3, 3)},
    "transposed by 2": {
        "transposed": True, "filter": (8, 16, 4, 4), "strides": (2, 2), "bias": True, "slope": 0.1,
        "images": {"y": image(16, 12, 10)},
    },
}  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCudnn:
    made = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", made)
    return made


@pytest.fixture
def cudnn(fake: FakeCudnn) -> Cudnn:
    found = open_cudnn(HostDevice())
    assert found is not None
    return found


def results(cudnn: Cudnn, what: Convolution) -> tuple[Any, Any]:
    """Of the own kernel, then of cuDNN's first plan."""
    plan = next(cudnn.candidates(what))
    with cudnn_measure._memory(cudnn.device, what, [plan]) as at:
        for launch in at.own(what).launches:
            cudnn.device.launch(launch)
        wanted = at.result(what)
        cudnn.device.call(cudnn.call(what, plan, at.addresses, at.workspace))
        return wanted, at.result(what)


@pytest.mark.parametrize("name", CASES)
def test_a_graph_computes_what_the_own_kernel_computes(cudnn: Cudnn, name: str) -> None:
    wanted, found = results(cudnn, plain(**CASES[name]))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("dtype", "least"), [("f16", 2e-3), ("bf16", 1.6e-2)])
def test_sixteen_bits_go_in_and_out(cudnn: Cudnn, dtype: Any, least: float) -> None:
    what = plain(dtype, bias=True, mask_slope=0.5, images={"mask": image(16, 6, 5, dtype)})
    wanted, found = results(cudnn, what)
    assert np.linalg.norm(found - wanted) < least * np.linalg.norm(wanted)


def test_engines_that_repeat_nothing_or_round_products_are_left_out(cudnn: Cudnn) -> None:
    assert [plan.name for plan in cudnn.candidates(plain())] == ["eng1"]
    tensor_cores = cudnn.candidates(plain(compute="tf32"))
    assert [plan.name for plan in tensor_cores] == ["eng1", "eng3"]


def test_much_working_memory_is_refused(cudnn: Cudnn, fake: FakeCudnn) -> None:
    fake.workspaces["eng1"] = 2**40
    assert list(cudnn.candidates(plain())) == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, fake: FakeCudnn) -> dict[str, float]:
    """Seconds that plans, and own kernels as "", take."""
    seconds = {OWN: 1.0, "eng1": 0.5, "eng3": 0.25}

    def of(device: Any, work: Any) -> float:
        fake.executed.clear()
        work()
        device.synchronize()
        return seconds[fake.executed[-1] if fake.executed else OWN]

    monkeypatch.setattr(cudnn_measure, "seconds_of", of)
    return seconds


@pytest.mark.parametrize(
    ("wrong", "own", "chosen"),
    [(set(), 1.0, "eng3"), ({"eng3"}, 1.0, "eng1"), ({"eng1", "eng3"}, 1.0, OWN),
     (set(), 0.25, OWN), ({"eng3"}, 0.4, OWN)],
)  # fmt: skip
def test_the_fastest_that_is_right_is_chosen(
    cudnn: Cudnn, fake: FakeCudnn, clock: dict[str, float], wrong: Any, own: float, chosen: str
) -> None:
    fake.wrong, clock[OWN] = wrong, own
    assert measure(cudnn, plain(compute="tf32")).plan == chosen


def test_times_are_of_recorded_graphs(cudnn: Cudnn) -> None:
    assert measure(cudnn, plain()).own_seconds is not None


def engines(cudnn: Cudnn, folder: Path, mode: str = "measure") -> tuple[Engines, list[Any]]:
    asked: list[Any] = []

    def fixed(_: Cudnn, what: Convolution) -> Choice:
        asked.append(what)
        return Choice("eng1", 2.0, 1.0)

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
def test_what_cudnn_refuses_is_an_own_kernels(
    cudnn: Cudnn, fake: FakeCudnn, tmp_path: Path, where: str
) -> None:
    fake.failing = {where}
    with pytest.raises(CudnnError, match=where):
        list(cudnn.candidates(plain()))
    assert Engines(cudnn, measure, folder=tmp_path).plan(plain()) is None


def test_the_rule_wants_tensor_cores_and_channels(cudnn: Cudnn, tmp_path: Path) -> None:
    wide = plain("f16", filter=(32, 32, 3, 3))
    assert by_rule(wide)
    assert not by_rule(plain("f16"))
    assert not by_rule(replace(wide, compute="f32"))
    made, asked = engines(cudnn, tmp_path, "rule")
    assert made.plan(plain("f16")) is None
    assert not asked
    assert not list(tmp_path.iterdir())


def test_without_cudnn_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert open_cudnn(HostDevice()) is None


def test_the_handle_is_given_back(cudnn: Cudnn, fake: FakeCudnn) -> None:
    Engines(cudnn, measure).close()
    assert fake.handle is None
    cudnn.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_computes_the_same_with_cudnn(
    cudnn: Cudnn, fake: FakeCudnn, tmp_path: Path, precision: Any
) -> None:
    made, asked = engines(cudnn, tmp_path)
    fake.workspaces["eng1"] = 512
    bundle, found = open_bundle("default"), []
    rows = columns = 2 * bundle.manifest.image.size_multiple
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, rows, columns)).astype(np.float32)
    scope = bundle.manifest.scopes[0].name
    for choice in ({}, {"makers": makers_with(made), "choose": made.choose}):
        weights, gradients = bundle.weights(), np.zeros_like(bundle.weights())
        device = cudnn.device if choice else HostDevice()
        options = EngineOptions(1, precision)
        engine = CudaBackend(bundle, weights, gradients, options, device, **choice)
        frame = Frame(x, np.full_like(x, np.nan))
        engine.gradients(scope, frame)
        found.append((gradients, frame.restored))
    assert len(asked) > 2
    assert len(fake.executed) > len(asked)
    assert {what.transposed for what in asked} == {False, True}
    for own, other in zip(*found, strict=True):
        assert_gradient_close(other, own, 1e-5 if precision == "fp32" else 1e-2)
