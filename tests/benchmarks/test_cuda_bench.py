"""The benchmark on a GPU, with a device of host memory and PyTorch on the CPU in its place."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeadapt.benchmarks import cuda_bench, machine
from edgeadapt.benchmarks.cuda_peers import (
    CudaPeer,
    figures_of,
    is_rough,
    our_names,
    precision_of,
    torch_variants,
)
from edgeadapt.benchmarks.peers import Agreement, Results, Work, agreement, first_results
from edgeadapt.benchmarks.torch_cuda import TorchCudaPeer
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.cli import main
from edgeadapt.errors import BackendError, EdgeadaptError
from edgeadapt.image import to_network
from edgeadapt.testing import noise
from support.host_device import ORIN, HostDevice

FACTORY = "edgeadapt.training.losses:build"
HEIGHT, WIDTH = 16, 16  # the least: a thread of the device is a fiber here
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other longer than they compute
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


def work(factory: str = FACTORY) -> Work:
    return Work("nano", HEIGHT, WIDTH, "heads", 1, factory)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> list[HostDevice]:
    """What was opened instead of a GPU; PyTorch runs on the CPU."""
    made: list[HostDevice] = []

    def opened() -> HostDevice:
        made.append(HostDevice())
        return made[-1]

    def torch_peer(name: str, bundle: Bundle, picture: Any, work: Work, steps: int) -> Any:
        return TorchCudaPeer(name, bundle, to_network(picture, 16), work, steps, device="cpu")

    monkeypatch.setattr(cuda_bench, "_gpu", opened)
    monkeypatch.setattr(cuda_bench, "_torch_peer", torch_peer)
    return made


def test_names_say_what_is_computed_in() -> None:
    assert our_names() == ["cuda", "cuda tf32", "cuda fp16", "cuda bf16"]
    assert [precision_of(name) for name in our_names()] == ["fp32", "tf32", "fp16", "bf16"]
    eager = ["torch", "torch channels-last", "torch channels-last fp16", "torch channels-last bf16"]
    found = torch_variants(compiled=True)
    assert found[:4] == eager
    assert {"torch graph", "torch graph channels-last fp16"} <= set(found)
    assert {"torch compile channels-last", "torch compile channels-last bf16"} <= set(found)
    assert not any("compile" in name for name in torch_variants(compiled=False))
    assert [is_rough(name) for name in eager] == [False, False, True, True]


def test_everyone_gets_rows_with_what_was_compared(
    bundle: Bundle, on_host: list[HostDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ["cuda", "cuda bf16"]
    monkeypatch.setattr(cuda_bench, "our_names", lambda: ours)
    ways = ["torch", "torch channels-last fp16", "torch graph channels-last bf16"]
    rows = cuda_bench.measure(bundle, [work()], steps=1, repeats=1, ways=ways)
    assert all(list(row) == cuda_bench.COLUMNS for row in rows)
    found = {(row["peer"], row["operation"]): row for row in rows}
    for name in ours:
        for operation in ("step", "adapt", "restore", "upload", "download"):
            assert found[name, operation]["median_ms"] > 0
    for name in ways:
        assert "upload" not in [o for n, o in found if n == name]
        assert min(found[name, o]["median_ms"] for o in ("adapt", "step", "restore")) > 0
    assert found["torch", "step"]["gradients_error"] == 0
    assert found["cuda", "step"]["gradients_error"] < 1e-4
    assert 1e-5 < found["cuda bf16", "step"]["gradients_error"] < 0.9
    assert found["cuda", "step"]["ratio"] == 1.0
    assert 0 < found["cuda", "adapt"]["cpu_ms"] < 1e3
    assert found["cuda", "restore"]["cpu_ms"] is None
    # Weights, gradients and their copies alone; PyTorch's is not known without a GPU.
    assert found["cuda", "step"]["peak_mib"] > 3 * 4 * bundle.weights().size / 2**20
    assert all(device.memory.used_bytes == 0 for device in on_host)


def test_a_table_names_the_gpu_and_the_least_time(
    bundle: Bundle,
    on_host: list[HostDevice],
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nano = replace(ORIN, name="Orin", multiprocessors=8)
    monkeypatch.setattr(cuda_bench, "_gpu", lambda: HostDevice(info=nano))
    monkeypatch.setattr(cuda_bench, "our_names", lambda: ["cuda", "cuda bf16"])
    monkeypatch.setenv("EDGEADAPT_COMMIT", "abc123")
    out = tmp_path / "gpu.csv"
    size = f"{WIDTH}x{HEIGHT}"
    arguments = ["bench", "peers", "nano", "--device", "cuda", "--scope", "heads", "--steps"]
    arguments += [
        "1",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--size",
        size,
        "--way",
        "torch",
        "-o",
        str(out),
    ]
    made: list[Any] = []
    measure = cuda_bench.measure
    monkeypatch.setattr(
        cuda_bench, "measure", lambda *others: made or made.extend(measure(*others)) or made
    )
    for _ in range(2):
        assert main(arguments) == 0
        assert "roofline" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["peer"] for row in rows[:5]] == ["cuda", "cuda bf16", "torch", "cuda", "cuda bf16"]
    assert len(rows) == 2 * (3 * 3 + 2 * 2)
    first = rows[0]
    assert (first["gpu"], first["commit"], first["steps"]) == ("Orin", "abc123", "1")
    assert first["roofline_of"] == "orin-nano"
    assert 0 < float(first["roofline_ms"]) < 10
    assert float(rows[1]["roofline_ms"]) < float(first["roofline_ms"])
    assert main(["bench", "peers", "nano", "--size", size, "-o", str(out)]) == 2
    assert "is a table of something else" in capsys.readouterr().err


def test_without_a_factory_the_native_engine_is_the_reference(
    bundle: Bundle, on_host: list[HostDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_bench, "our_names", lambda: ["cuda"])
    rows = cuda_bench.measure(bundle, [work(factory="")], steps=1, repeats=1, ways=["torch"])
    assert {row["peer"] for row in rows} == {"cuda"}
    assert rows[0]["gradients_error"] < 1e-4


def test_a_way_of_pytorch_that_fails_is_left_out(
    bundle: Bundle,
    on_host: list[HostDevice],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    plain = cuda_bench._torch_peer

    def failing(name: str, *others: Any) -> Any:
        if name == "torch channels-last":
            raise RuntimeError("out of something")
        return plain(name, *others)

    monkeypatch.setattr(cuda_bench, "_torch_peer", failing)
    monkeypatch.setattr(cuda_bench, "our_names", lambda: ["cuda"])
    ways = ["torch", "torch channels-last"]
    rows = cuda_bench.measure(bundle, [work()], steps=1, repeats=1, ways=ways)
    assert {row["peer"] for row in rows} == {"cuda", "torch"}
    assert "torch channels-last is left out: out of something" in capsys.readouterr().err


def test_an_engine_that_does_not_agree_is_not_timed(
    bundle: Bundle, on_host: list[HostDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CudaPeer.gradients

    def wrong(self: CudaPeer) -> Any:
        return {name: value * np.float32(1.01) for name, value in plain(self).items()}

    monkeypatch.setattr(CudaPeer, "gradients", wrong)
    monkeypatch.setattr(cuda_bench, "medians", lambda *others: pytest.fail("timed"))
    with pytest.raises(EdgeadaptError, match="cuda and torch do not agree"):
        cuda_bench.measure(bundle, [work()], steps=1, repeats=1, ways=["torch"])


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def refused() -> Any:
        raise BackendError("there is no NVIDIA driver.", "install NVIDIA's driver.")

    monkeypatch.setattr(cuda_bench, "_gpu", refused)
    assert main(["bench", "peers", "nano", "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "edgeadapt: error: there is no NVIDIA driver. Hint: install NVIDIA's driver."
    ]


@pytest.mark.parametrize("name", torch_variants(compiled=False))
def test_pytorch_computes_the_same_however_it_is_asked(bundle: Bundle, name: str) -> None:
    image = to_network(noise(0, HEIGHT, WIDTH), 16)
    peer = TorchCudaPeer(name, bundle, image, work(), 2, device="cpu")
    reference = TorchCudaPeer("torch", bundle, image, work(), 2, device="cpu")
    found = agreement(first_results(peer), first_results(reference))
    assert found.within_bounds(half=is_rough(name)), found
    if is_rough(name):
        assert found.image > 1e-5
        assert found.gradients < 0.9
    assert peer.seconds("upload") is None


def test_gradients_in_float16_are_given_as_if_nothing_was_scaled(bundle: Bundle) -> None:
    picture = noise(0, 64, 64)
    image = to_network(picture, 16)
    names = ("torch channels-last fp16", "torch")
    half, full = (TorchCudaPeer(n, bundle, image, work(), 1, device="cpu") for n in names)
    assert half._scale > 1
    found = agreement(first_results(half), first_results(full))
    assert found.gradients < 0.5


def test_results_are_compared_as_they_were() -> None:
    ones = {"w": np.ones(3, np.float32)}
    one = Results(np.zeros((1, 3, 2, 2), np.float32), 2.0, ones)
    assert agreement(one, one) == Agreement(0.0, 0.0, 0.0, 0.0)
    other = replace(one, loss=1.0, gradients={"w": np.zeros(3, np.float32)})
    assert agreement(other, one).gradients == 1.0


def test_figures_are_those_of_the_gpu_or_none() -> None:
    h200 = replace(ORIN, name="NVIDIA H200", capability=(9, 0), multiprocessors=132)
    found = figures_of(h200)
    assert found is not None
    assert found.key == "h200"
    assert figures_of(replace(h200, name="NVIDIA H100 80GB HBM3")) is None
    assert figures_of(replace(h200, multiprocessors=114)) is None


def test_what_nvidia_smi_does_not_say_is_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(text: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.describe_gpu()["gpu"] == ""
    write("echo 'NVIDIA H200, 580.159.03, 1980, 1980, 3201, 700.00'")
    found = machine.describe_gpu()
    assert (found["gpu"], found["driver"], found["sm_mhz"]) == ("NVIDIA H200", "580.159.03", "1980")
    write("exit 9")
    assert machine.describe_gpu()["gpu"] == ""
