"""Peers: the same numbers, in turn, with torch and without."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeadapt.benchmarks import peers
from edgeadapt.benchmarks.memory import measure, peak_mib
from edgeadapt.benchmarks.peers import (
    Peer,
    Work,
    make_peers,
    time_in_turn,
    torch_names,
)
from edgeadapt.bundle import Adaptation, Bundle, Model, open_bundle
from edgeadapt.cli import main
from edgeadapt.errors import EdgeadaptError
from edgeadapt.export import trust
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.runtime.backends import ON_CPU
from edgeadapt.training.network import build
from support.tables import read_rows

Output = pytest.CaptureFixture[str]
FACTORY = "edgeadapt.training.network:build"
OPTIONS = {"widths": [4, 6], "n_scales": 2, "share_scales": True, "blocks": 1}


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeblurNet with random biases and a learned step size."""
    torch.manual_seed(3)
    network = build(**OPTIONS)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias"):
                value.uniform_(-0.1, 0.1)
    learned = {next(name for name, _ in network.named_parameters()): 0.02}
    options = ExportOptions(
        Model("net", "a test", FACTORY, OPTIONS), Adaptation(2, "sgd", 0.01, learned)
    )
    return export_bundle(network, tmp_path_factory.mktemp("peers") / "net.bundle", options).path


def work(net: Path, scope: str = "all") -> Work:
    return Work(str(net), 32, 40, scope, 1, FACTORY)


@pytest.mark.parametrize("scope", ["all", "heads", "bias"])
def test_everyone_computes_the_same_for_several_steps(net: Path, scope: str) -> None:
    bundle = open_bundle(net)
    names = [*ON_CPU, *torch_names(with_compile=False)]
    opened, first = make_peers(names, bundle, work(net, scope))
    assert all(agreement.within_bounds() for agreement in first.values())
    assert first["torch"].gradients == 0
    assert set(opened["torch"].gradients()) == set(bundle.scope(scope).parameters)
    losses = [{name: peer.step() for name, peer in opened.items()} for _ in range(3)]
    assert losses[2]["torch"] < losses[0]["torch"], "weights that do not move show no wrong update"
    for row in losses:
        # float32 sums over an image, after steps that differ by as little.
        assert row == pytest.approx(dict.fromkeys(names, row["torch"]), rel=1e-5)


class Altered:
    """A peer with something wrong."""

    def __init__(self, peer: Peer, what: str) -> None:
        self._peer, self._what = peer, what

    def step(self) -> float:
        return self._peer.step() * (1.001 if self._what == "loss" else 1.0)

    def restore(self) -> Any:
        return self._peer.restore() + np.float32(0.001 if self._what == "image" else 0.0)

    def gradients(self) -> Mapping[str, Any]:
        found = dict(self._peer.gradients())
        if self._what == "gradients":
            found = {name: value * np.float32(1.001) for name, value in found.items()}
        if self._what == "one tensor":
            smallest = min(found, key=lambda name: float(np.linalg.norm(found[name])))
            found[smallest] = -found[smallest]
        if self._what == "not a number":
            name = next(iter(found))
            found[name] = np.full_like(found[name], np.nan)
        return found


@pytest.mark.parametrize("what", ["loss", "image", "gradients", "one tensor", "not a number"])
def test_what_does_not_agree_is_not_timed(
    what: str, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = peers.make_peer
    seeds = []

    def altered(name: str, bundle: Bundle, work: Work, seed: int = 0) -> Any:
        peer = plain(name, bundle, work, seed)
        if name != "onnxruntime":
            return peer
        seeds.append(seed)
        return Altered(peer, what)

    monkeypatch.setattr(peers, "make_peer", altered)
    with pytest.raises(EdgeadaptError, match="onnxruntime and torch do not agree"):
        make_peers(("onnxruntime", "torch"), open_bundle(net), work(net))
    assert seeds == [0, 1, 2, 3, 4]


def test_calls_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    seconds = time_in_turn(calls, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_command_writes_a_row_for_everyone(net: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "made" / "peers.csv"
    arguments = ["bench", "peers", str(net), "--repeats", "2", "--threads", "1", "--no-memory"]
    assert main([*arguments, "--size", "32x24", "--size", "17x33", "-o", str(out)]) == 0
    rows = read_rows(out)
    names = [*ON_CPU, "torch", "torch channels-last"]
    found = [(row["width"], row["height"], row["operation"], row["peer"]) for row in rows]
    sizes = (("32", "24"), ("17", "33"))
    assert found == [(*s, o, p) for s in sizes for o in ("step", "restore") for p in names]
    for row in rows:
        first = next(r for r in rows if all(r[k] == row[k] for k in ("width", "operation")))
        ratio = float(row["median_ms"]) / float(first["median_ms"])
        assert float(row["ratio"]) == pytest.approx(ratio, rel=0.01, abs=0.001)
        assert row["torch"] == torch.__version__
        assert row["threads"] == "1"
        assert row["cpu"]
        assert row["date"]
    assert "torch channels-last" in capsys.readouterr().out
    assert main([*arguments, "--size", "32x24", "-o", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2 * len(names)
    assert len(read_rows(out)) == 6 * len(names)


def test_without_torch_this_runtime_alone_is_measured(
    net: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    arguments = ["--size", "16x16", "--repeats", "1", "--no-memory", "--json"]
    # A network of a stranger, whose code is not run unasked.
    assert main(["bench", "peers", str(tiny), *arguments]) == 0
    captured = capsys.readouterr()
    assert "the network's factory is nowhere:tiny" in captured.err
    assert {row["peer"] for row in json.loads(captured.out)} == set(ON_CPU)
    monkeypatch.setattr(trust, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "edgeadapt.benchmarks.torch_peer", None)
    assert main(["bench", "peers", str(net), *arguments]) == 0
    captured = capsys.readouterr()
    assert "Only edgeadapt is measured: PyTorch is not installed." in captured.err
    assert {row["peer"] for row in json.loads(captured.out)} == set(ON_CPU)


def test_memory_is_that_of_a_process_of_its_own(net: Path) -> None:
    held = np.ones(200 * 2**17)  # 200 MiB that the other process must not count as its own
    small = peak_mib("onnxruntime", "step", work(net))
    large = peak_mib("onnxruntime", "step", replace(work(net), height=512, width=512))
    assert held[-1] == 1
    assert small < 60
    # The image, restored and a few of the 4-channel maps of full size, 1 MiB a channel: at least
    # 20 MiB; 200 times the pixels of the small image hide all that is fixed.
    assert large > small + 20
    assert peak_mib("torch", "restore", work(net)) >= 0


def test_memory_that_cannot_be_measured_is_an_error(net: Path) -> None:
    with pytest.raises(EdgeadaptError, match=r"nobody .*Error: there is no backend 'nobody'"):
        peak_mib("nobody", "step", work(net))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux forgets its peak")
def test_memory_before_the_peer_does_not_count(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heavy:
        def __init__(self, name: str, bundle: Bundle, work: Work, picture: Any) -> None:
            assert picture.shape == (work.height, work.width, 3)
            self._size = 30 * 2**20 if work.height > 1 else 90 * 2**20

        def step(self) -> None:
            np.ones(self._size, np.uint8)

    monkeypatch.setattr("edgeadapt.benchmarks.memory.make_peer", Heavy)
    peak = measure("heavy", "step", work(net)) / 2**20
    assert 28 <= peak <= 40  # pages of other threads may come and go


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "32"], "'32' is no WIDTHxHEIGHT"),
        (["--size", "0x8"], "'0x8' is no WIDTHxHEIGHT"),
        (["--scope", "nose"], "no adaptation scope 'nose'"),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["-o", "foreign.csv"], "is a table of something else"),
    ],
)
def test_a_refusal_is_one_line(
    arguments: list[str],
    message: str,
    net: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foreign.csv").write_text("a,b\n1,2\n")
    assert main(["bench", "peers", str(net), "--no-memory", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def test_the_bounds_hold_what_they_say() -> None:
    good = peers.Agreement(0.0, 0.0, 0.0, 0.0)
    assert good.within_bounds()
    for name in ("loss", "gradients", "worst_tensor", "image"):
        assert not replace(good, **{name: 0.02}).within_bounds()
        assert not replace(good, **{name: float("nan")}).within_bounds(half=True)
        assert replace(good, **{name: 0.02}).within_bounds(half=True)
        assert not replace(good, **{name: 2.1}).within_bounds(half=True)
    # No gradient at all, or none of one tensor.
    assert not replace(good, gradients=1.0, worst_tensor=1.0).within_bounds(half=True)
    assert not replace(good, worst_tensor=1.0).within_bounds(half=True)


@pytest.mark.parametrize("name", ["nano", "edge"])
def test_the_networks_that_ship_agree_in_bfloat16(name: str) -> None:
    one = Work(name, 64, 64, "all", 1, factory="")
    _, found = make_peers(("onnxruntime", "native", "native bf16"), open_bundle(name), one)
    # Well within what is allowed: the bounds have room for other networks.
    assert found["native bf16"].gradients < 0.1
    assert 0 < found["native bf16"].worst_tensor < 0.5


def test_pytorch_in_bfloat16_does_the_same_work_in_fewer_bits(net: Path) -> None:
    _, found = make_peers(
        ("torch", "torch bf16", "torch channels-last bf16"), open_bundle(net), work(net)
    )
    for name in ("torch bf16", "torch channels-last bf16"):
        assert 1e-5 < found[name].gradients < 0.1  # float32 would be closer
        assert found[name].image > 1e-5
