from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.backend import EngineOptions
from edgeadapt.runtime.cuda import show
from edgeadapt.runtime.cuda.devices import device_names, find_device
from edgeadapt.runtime.cuda.plan import compile_graph as plan_for_cuda
from edgeadapt.runtime.plan.cost import flops, traffic
from edgeadapt.runtime.profile import calibrate as calibrating
from edgeadapt.runtime.profile.calibrate import Rates, calibrate, fit
from edgeadapt.runtime.profile.predict import THIS, Work, predict, print_prediction
from edgeadapt.runtime.profile.work import AMOUNTS
from edgeadapt.runtime.profile.work import Work as KernelWork


def asked(tiny: Path, precision="fp32", steps=2, backend="auto", size=(21, 34)) -> Work:
    return Work(open_bundle(tiny), size, steps, "all", backend, EngineOptions(2, precision))


RATE = st.floats(1e-9, 1e-3)


@given(st.lists(RATE, min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_rates_that_made_the_times_are_found_again(rates: list[float], seed: int) -> None:
    amounts = np.random.default_rng(seed).uniform(0.5, 2.0, (40, 4)) * [1e3, 10, 1, 0.1]
    seconds = amounts @ np.array(rates)
    found = fit(amounts, seconds)
    assert (found >= 0).all()
    np.testing.assert_allclose(amounts @ found, seconds, rtol=1e-6)


def test_an_amount_that_seems_to_save_time_is_left_out() -> None:
    amounts = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 1.0], [3.0, 4.0]])
    seconds = amounts @ np.array([2.0, -0.3])
    found = fit(amounts, seconds)
    assert found[1] == 0
    # The least squares of relative errors with the first amount alone.
    scaled = amounts[:, 0] / seconds
    assert found[0] == pytest.approx(scaled.sum() / (scaled**2).sum())


def test_a_class_that_was_not_measured_has_the_rates_of_its_like() -> None:
    rates = Rates({"direct convolution, bf16, of bf16": (1.0,) * 6, "elementwise": (9.0,) * 6},
                  2, {})  # fmt: skip
    work = KernelWork("direct convolution, bf16, of f32", (1.0, 2.0, 0.0, 0.0, 0.0, 1.0))
    assert rates.time(work) == 4.0


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate on small images, and a large one that does not fit into a small cache."""
    monkeypatch.setattr(calibrating, "_SIZES", ((17, 24), (40, 48)))
    monkeypatch.setattr(calibrating, "_CHANNELS", ((3, 12), (12, 20)))
    monkeypatch.setattr(calibrating, "_LARGE", (((4, 6),), (56, 72)))
    monkeypatch.setattr(calibrating, "_ROUNDS", 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_class_of_work_of_a_network_is_measured(few: None, precision: str) -> None:
    found = calibrate(precision, 1, 64 * 1024)
    kinds = {kind.partition(",")[0] for kind in found.seconds}
    assert kinds == {
        "winograd convolution", "direct convolution", "weight gradient by rows of three",
        "weight gradient", "elementwise", "packing of weights",
    }  # fmt: skip
    for kind, rates in found.seconds.items():
        assert len(rates) == len(AMOUNTS)
        assert min(rates) >= 0
        assert max(rates) > 0, kind
    assert ("direct convolution, bf16, of bf16" in found.seconds) == (precision == "bf16")


@pytest.mark.parametrize("steps", [0, 2])
def test_a_prediction_for_this_machine_is_made_of_its_plan(
    few: None, tiny: Path, steps: int
) -> None:
    found = predict(asked(tiny, steps=steps), THIS)
    stages = [(stage.name, stage.times) for stage in found.stages]
    assert stages == ([("step", 2), ("loss", 1)] if steps else []) + [("restore", 1)]
    for stage in found.stages:
        assert stage.seconds > 0
        assert stage.roofline_seconds > 0
        assert stage.launches is None
    total = sum(stage.times * stage.seconds for stage in found.stages)
    assert found.seconds == pytest.approx(total)


def test_other_engines_have_no_plan_to_predict_from(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="native engine's plan, not of onnxruntime's"):
        predict(asked(tiny, backend="onnxruntime"), THIS)
    with pytest.raises(BackendError, match="not fp16"):
        predict(asked(tiny, precision="fp16"), THIS)


@pytest.mark.parametrize("device", device_names())
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_prediction_for_a_gpu_is_its_roofline(tiny: Path, device: str, precision: str) -> None:
    work = asked(tiny, precision)
    found = predict(work, device)
    figures = find_device(device)
    bundle = work.bundle
    target = show.cuda_target(precision, None)
    scope = bundle.scope("all")
    plan = plan_for_cuda(
        bundle, scope.graph, 24, 36, target, scope.parameters,
        bundle.manifest.adaptation.optimizer,
    )  # fmt: skip
    seconds = 0.0
    for op in plan.program.ops:
        products = op.kind in ("conv", "conv_weight_grad")
        rate = figures.flops_per_second[precision if products else "fp32"]
        seconds += max(
            flops(op, plan.program) / rate, traffic(op, plan.program) / figures.bytes_per_second
        )
    step = found.stages[0]
    assert step.name == "step"
    assert step.seconds == pytest.approx(seconds)
    assert step.launches is not None
    assert step.launches > 0
    assert "does NOT fit" not in found.memory


def test_a_prediction_says_that_it_is_one_and_what_it_rests_on(tiny: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=300, highlight=False)
    print_prediction(asked(tiny, "fp16"), "thor-t5000", False, None, console)
    text = out.getvalue()
    assert text.startswith("PREDICTION, not a measurement: ")
    assert "Jetson AGX Thor T5000 at 34x21, fp16, K = 2" in text
    assert "258.5 TFLOP/s in fp16 (documented: " in text
    assert "8.1 TFLOP/s for all else (unverified: " in text
    assert "caches are ignored" in text
    assert "no time for launches" in text
    assert "has not been measured on this device" in text
    assert "Measured" not in text


def test_a_check_says_how_far_off_it_is(
    few: None, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    console = Console(file=out, width=300, highlight=False)
    print_prediction(asked(tiny), THIS, False, lambda: 0.5, console)
    assert "Measured here, median: 500 ms; predicted / measured = " in out.getvalue()
    print_prediction(asked(tiny), THIS, True, lambda: 0.5, console)
    document = json.loads(capsys.readouterr().out)
    assert document["prediction"] is True
    assert document["measured_seconds_per_image"] == 0.5
    assert document["seconds_per_image"] > 0
    assert any("fitted just now to" in line for line in document["assumptions"])


def test_what_does_not_fit_a_device_is_said(tiny: Path) -> None:
    found = predict(asked(tiny, size=(9600, 14400)), "orin-nano")
    assert "it does NOT fit" in found.memory
