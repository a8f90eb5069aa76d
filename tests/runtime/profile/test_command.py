from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeadapt.cli import main
from edgeadapt.errors import BackendError
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.profile.parts import GROUPS
from edgeadapt.runtime.profile.session_profile import Request
from support.host_device import HostDevice
from support.profiles import PEAKS

QUICK = ("--size", "34x21", "--duration", "0", "--warmUp", "0", "--iterations", "3",
         "--repetitions", "3")  # fmt: skip
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def known_peaks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring them takes a second: once is enough."""
    if request.function is not test_the_summary_and_the_operations_are_printed:
        module = "edgeadapt.runtime.profile.session_profile"
        monkeypatch.setattr(f"{module}.measure_peaks", lambda threads: PEAKS)


def profile(tiny: Path, *arguments: object) -> int:
    return main(["profile", str(tiny), *QUICK, *map(str, arguments)])


def test_the_summary_and_the_operations_are_printed(tiny: Path, capsys: Output) -> None:
    assert profile(tiny, "--backend", "native", "--steps", 2, "--avgRuns", 3) == 0
    text = capsys.readouterr().out
    for words in (
        "on native at 34x21, fp32, K = 2, scope all",
        "=== Performance summary ===",
        "Warm-up: 1 runs",
        "measured: 3 runs",
        "percentile(99%)",
        "=== Step: adapt.all.onnx, 2 an image ===",
        "=== Restore: restore.onnx, one an image ===",
        "Measured peaks: fp32",
        "weight-gradient",
        "Roofline of the whole",
        "profiling costs",
    ):
        assert words in text


def test_json_is_one_document(tiny: Path, capsys: Output) -> None:
    assert profile(tiny, "--backend", "native", "--steps", 1, "--json", "--precision", "bf16") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["backend"], found["steps"], found["precision"]) == ("native", 1, "bf16")
    assert found["summary"]["runs"] == 3
    assert found["peaks"]["flops_per_second"]["fp32"] > 0
    step = found["step"]
    assert step["repetitions"] == 3
    parts = sum(operation["ms"] for operation in step["operations"])
    assert parts == pytest.approx(step["parts_ms"])
    assert sum(group["ms"] for group in step["groups"]) == pytest.approx(parts)
    assert {group["group"] for group in step["groups"]} <= set(GROUPS)
    assert found["restore"]["graph"] == "restore.onnx"


def test_without_steps_there_is_only_the_restoration(tiny: Path, capsys: Output) -> None:
    assert profile(tiny, "--backend", "native", "--steps", 0, "--rows", 0) == 0
    text = capsys.readouterr().out
    assert "K = 0" in text
    assert "=== Restore" in text
    assert "=== Step" not in text


def test_trtexecs_spelling_and_ours_are_the_same(tiny: Path, capsys: Output) -> None:
    words = ("--avg-runs=2", "--idle-time=1", "--percentile=50,75", "--dump-profile",
             "--separateProfileRun", "--no-operations")  # fmt: skip
    assert profile(tiny, *words) == 0
    assert "percentile(50%)" in capsys.readouterr().out
    spelt = ("--avgRuns=2", "--idleTime=1", "--percentile=50,75", "--dumpProfile")
    assert profile(tiny, *spelt, "--no-operations") == 0
    text = capsys.readouterr().out
    assert "percentile(75%)" in text
    assert "===\n" in text
    assert "Step" not in text


def test_the_defaults_are_those_of_trtexec(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def taken(request: Request, *rest: Any) -> None:
        asked.append((request, rest))

    monkeypatch.setattr("edgeadapt.runtime.profile.command.run_profile", taken)
    assert main(["profile", str(tiny)]) == 0
    request, (_, _, average, _) = asked[0]
    plan = request.plan
    assert (plan.warm_up, plan.duration, plan.iterations, plan.idle) == (0.2, 3.0, 10, 0.0)
    assert (request.percents, average) == ((90.0, 95.0, 99.0), 10)
    assert request.size == (720, 1280)


@pytest.mark.parametrize("backend", ["native"])
def test_files_are_written(tiny: Path, tmp_path: Path, capsys: Output, backend: str) -> None:
    files = {
        name: tmp_path / f"{name}.json" for name in ("profile_t", "layers_t", "times", "trace")
    }
    picture = tmp_path / "roofline.png"
    status = profile(
        tiny, "--backend", backend, "--steps", 1, "--export", files["profile_t"],
        "--exportTimes", files["times"], "--trace", files["trace"], "--plot", picture,
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert found["profile_t"][0] == {"count": 3}
    names = [record["name"] for record in found["profile_t"][1:]]
    assert names == [layer["Name"] for layer in found["layers_t"]]
    assert {name.partition(":")[0] for name in names} == {"step", "restore"}
    assert len(found["times"]) == 3
    assert found["trace"]["traceEvents"]
    with Image.open(picture) as image:
        assert min(image.size) > 400


def test_a_backend_that_cannot_be_taken_apart_gives_the_summary_and_says_so(
    tiny: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeadapt.runtime.profile.timing.Profiled", type(None))
    assert profile(tiny, "--backend", "native") == 0
    text = capsys.readouterr().out
    assert "=== Performance summary ===" in text
    assert "No operations: the backend native does not take the time of its operations." in text
    assert profile(tiny, "--backend", "native", "--export", "nothing.json") == 2
    error = capsys.readouterr().err
    assert "there are no operations to export" in error
    assert not Path("nothing.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--percentile", "90,x"), "'90,x' is no list of numbers from 0 to 100"),
        (("--percentile", "101"), "'101' is no list"),
        (("--scope", "none"), "none"),
        (("--predict", "orin-mano"), "orin-mano"),
        (("--predict", "agx-orin-64", "--check"), "this machine, got --predict agx-orin-64"),
        (("--check",), "this machine, got nothing predicted"),
        (("--predict", "this", "--trace", "t.json"), "has nothing for a file"),
        (("--predict", "orin-nano", "--backend", "native"), "CUDA engine's plan, not of native's"),
        (("--export", "no/such/p.json"), "there is no folder no/such"),
        (("--plot", "roofline.svg"), "roofline.svg: --plot must end in .png"),
        (("--iterations", "0"), "0 is not in the range"),
        (("--duration", "nan"), "'nan' is no number of 0 or more"),
        (("--idleTime", "inf"), "inf is not in the range"),
        (("--warmUp", "-1"), "-1.0 is not in the range"),
        (("--warmUp", "-1"), "-1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: Path, capsys: Output, words: tuple[str, ...], message: str
) -> None:
    assert profile(tiny, *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_folder_that_may_not_be_written_to_is_refused_before_measuring(
    tiny: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access  # the superuser, who may write anywhere, runs tests too
    monkeypatch.setattr(os, "access", lambda at, mode: at != tmp_path and allowed(at, mode))
    assert profile(tiny, "--export", str(tmp_path / "p.json")) == 2
    captured = capsys.readouterr()
    assert f"p.json: you may not write to {tmp_path}" in " ".join(captured.err.split())
    assert captured.out == ""


def test_an_engine_whose_times_are_not_known_gives_the_summary_and_the_reason(
    tiny: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise BackendError("it ran in another order.", "profile another.")

    monkeypatch.setattr("edgeadapt.runtime.profile.session_profile.take_apart", refuse)
    assert profile(tiny, "--backend", "native") == 0
    text = capsys.readouterr().out
    assert "=== Performance summary ===" in text
    assert "No operations: it ran in another order. Hint: profile another." in text


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend cuda on a device that the host imitates."""

    def opened(name: str, *arguments: Any) -> CudaBackend:
        assert name == "cuda"
        return CudaBackend(*arguments, device=HostDevice())

    monkeypatch.setattr("edgeadapt.runtime.session.open_backend", opened)
    monkeypatch.setattr("edgeadapt.runtime.profile.measure.open_backend", opened)


def test_on_a_gpu_there_are_transfers_and_rates_and_no_roofline(
    on_host: None, tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    export = tmp_path / "profile_gpu.json"
    assert profile(tiny, "--backend", "cuda", "--steps", 2, "--export", export) == 0
    text = capsys.readouterr().out
    for words in ("Enqueue Time: min", "H2D Latency: min", "GPU Compute Time: min", "D2H Latency"):
        assert words in text
    assert text.count("No roofline: the peaks of this device have not been measured") == 2
    layers = json.loads((tmp_path / "layers_gpu.json").read_text())
    assert any(layer["LayerType"] == "conv" and layer["Inputs"] for layer in layers)
    assert profile(tiny, "--backend", "cuda", "--steps", 1, "--plot", tmp_path / "x.png") == 2
    assert "the peaks of this device are not known" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_prediction_runs_nothing(
    tiny: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeadapt.runtime.profile.command.run_profile", None)
    assert profile(tiny, "--predict", "orin-nano-super", "--precision", "fp16", "--steps", 3) == 0
    text = capsys.readouterr().out
    assert "PREDICTION, not a measurement: " in text
    assert "Jetson Orin Nano 8GB Super at 34x21, fp16, K = 3" in text
