"""`edgeadapt bench tradeoff`: its rows against sessions directly, and what a second call does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeadapt.benchmarks import tradeoff, tradeoff_command
from edgeadapt.benchmarks.memory import session_peak_mib
from edgeadapt.benchmarks.tradeoff import Machine, Point, Setup, best_points
from edgeadapt.benchmarks.tradeoff_plot import tradeoff_figure
from edgeadapt.cli import main
from edgeadapt.errors import EdgeadaptError
from edgeadapt.image import read_image
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Session
from support.photos import write_recordings
from support.tables import read_rows
from support.tiny_bundle import SCOPES, write_tiny_bundle

Output = pytest.CaptureFixture[str]
SIZE = (16, 24)  # height and width
ENGINES = 4  # native in fp32 and bf16, ONNX Runtime in fp32 and fp16
SETUP = Setup("net", "0", "native", "fp32", "all", 1, *SIZE, 1, "a processor")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two recordings of two images and one, larger than `SIZE` by odd and even numbers."""
    return write_recordings(tmp_path / "data", {"one": 2, "two": 1})


@pytest.fixture
def bench(tiny: Path, data: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: object, bundle: Path = tiny, out: str = "out") -> int:
        words = ["bench", "tradeoff", bundle, "--data", data, "--size", "24x16", "--threads", 1]
        return main([*map(str, [*words, "--no-memory", *arguments, "-o", tmp_path / out])])

    return run


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Setup]]:
    """What is timed, in order; what runs before to warm up is left out."""
    seen: list[Setup] = []
    plain = tradeoff._time

    def noting(session: Session, setup: Setup, image: Any) -> Any:
        seen.append(setup)
        return plain(session, setup, image)

    monkeypatch.setattr(tradeoff, "_time", noting)
    return seen


def alike(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(one[name] == other[name] for name in ("backend", "precision", "scope", "steps"))


def crop(path: Path) -> np.ndarray:
    return np.ascontiguousarray(read_image(path)[2:18, 3:27])


def test_rows_are_what_sessions_give(
    tiny: Path, data: Path, tmp_path: Path, bench: Callable[..., int], capsys: Output
) -> None:
    assert bench("--steps", 0, "--steps", 2, "--repeats", 2) == 0
    rows = read_rows(tmp_path / "out" / "tradeoff.csv")
    assert {(row["scope"], row["steps"]) for row in rows} == {
        ("-", "0"),
        *((scope, "2") for scope in SCOPES),
    }
    assert len(rows) == ENGINES * (1 + len(SCOPES))
    timings = read_rows(tmp_path / "out" / "timings.csv")
    for row in rows:
        own = [t for t in timings if alike(t, row)]
        assert len(own) == 6
        ms = median(float(t["milliseconds"]) for t in own)
        assert float(row["milliseconds"]) == pytest.approx(ms, abs=1e-3)
        assert ms > 0
        assert (row["images"], row["rounds"], row["threads"]) == ("3", "2", "1")
        assert row["cpu"]
        assert row["peak_mib"] == ""
        psnr, ssim = expected(tiny, data, row)
        assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-6)
        assert float(row["ssim"]) == pytest.approx(ssim, abs=1e-6)
    captured = capsys.readouterr()
    assert captured.out.count("native fp32") == 1 + len(SCOPES)
    timed = 6 * ENGINES * (1 + len(SCOPES))
    assert f"timing: {timed} of {timed}" in captured.err
    with Image.open(tmp_path / "out" / "tradeoff.png") as plot:
        assert min(plot.size) > 300


def expected(bundle: Path, data: Path, row: dict[str, str]) -> tuple[float, float]:
    """Means over recordings of what a session gives."""
    found: dict[str, list[tuple[float, float]]] = {}
    precision: Any = row["precision"]
    with Session(bundle, row["backend"], 1, precision) as session:
        for blurred in sorted(data.glob("*/blur/*.png")):
            session.reset()
            image = crop(blurred)
            if row["steps"] != "0":
                session.adapt(image, int(row["steps"]), row["scope"])
            quality = measure(
                session.restore(image), crop(blurred.parents[1] / "sharp" / blurred.name)
            )
            assert quality.ssim is not None
            found.setdefault(blurred.parents[1].name, []).append((quality.psnr, quality.ssim))
    means = np.mean([np.mean(values, axis=0) for values in found.values()], axis=0)
    return float(means[0]), float(means[1])


def test_everything_takes_turns(bench: Callable[..., int], restored: list[Setup]) -> None:
    assert bench("--steps", 1, "--scope", "all", "--precision", "fp32", "--repeats", 2) == 0
    assert [setup.backend for setup in restored] == ["native", "onnxruntime"] * 6


def test_a_second_call_goes_on(
    tmp_path: Path, bench: Callable[..., int], restored: list[Setup], capsys: Output
) -> None:
    arguments = ("--steps", 0, "--steps", 1, "--scope", "all", "--repeats", 1, "--no-plot")
    assert bench(*arguments) == 0
    once = len(restored)
    assert once == 3 * 2 * ENGINES  # images, K, engines
    out, table = tmp_path / "out", capsys.readouterr().out
    assert not (out / "tradeoff.png").exists()
    whole = {name: (out / name).read_text() for name in ("timings.csv", "tradeoff.csv")}
    assert bench(*arguments) == 0
    assert len(restored) == once
    assert capsys.readouterr().out == table
    # Killed while it wrote a timing.
    lines = whole["timings.csv"].splitlines(keepends=True)
    (out / "timings.csv").write_text("".join(lines[:-2]) + lines[-2][:20])
    (out / "tradeoff.csv").unlink()
    assert bench(*arguments) == 0
    assert len(restored) == once + 2
    # Killed while it wrote a row: its timings are all there.
    (out / "tradeoff.csv").write_text(whole["tradeoff.csv"][:-10])
    assert bench(*arguments) == 0
    assert len(restored) == once + 2
    assert len(read_rows(out / "tradeoff.csv")) == 2 * ENGINES
    # More of it is more work, and only that.
    assert bench(*arguments, "--steps", 2) == 0
    assert len(restored) == once + 2 + 3 * ENGINES
    assert {setup.steps for setup in restored[once + 2 :]} == {2}
    assert bench(*arguments[:-3], "--repeats", 2, "--no-plot") == 0
    assert len(restored) == 2 * once + 2 + 3 * ENGINES
    assert bench(*arguments, "--limit", 1) == 0
    assert len(restored) == 2 * once + 2 + 3 * ENGINES, "the same files in another set"
    assert len(read_rows(out / "tradeoff.csv")) == (3 + 2 + 2) * ENGINES
    # Fewer rounds than there are: the first of them.
    (out / "tradeoff.csv").unlink()
    assert bench(*arguments) == 0
    assert len(restored) == 2 * once + 2 + 3 * ENGINES
    first = [t for t in read_rows(out / "timings.csv") if t["round"] == "0" and t["steps"] != "2"]
    for number, row in enumerate(read_rows(out / "tradeoff.csv")):
        own = [float(t["milliseconds"]) for t in first if alike(t, row)]
        assert (number, float(row["milliseconds"])) == (
            number,
            pytest.approx(median(own), abs=1e-3),
        )


def test_rows_of_another_commit_are_kept_and_that_is_said(
    bench: Callable[..., int],
    restored: list[Setup],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    arguments = ("--steps", 0, "--backend", "native", "--repeats", 1, "--no-plot")
    assert bench(*arguments) == 0
    assert "another commit" not in capsys.readouterr().err
    described = {**tradeoff.describe(), "commit": "fffffff"}
    for module in (tradeoff, tradeoff_command):
        monkeypatch.setattr(module, "describe", lambda: dict(described))
    count = len(restored)
    assert bench(*arguments) == 0
    assert len(restored) == count
    assert "another commit" in capsys.readouterr().err


def test_a_row_without_memory_is_measured_again_when_memory_is_asked_for(
    tmp_path: Path,
    bench: Callable[..., int],
    restored: list[Setup],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--steps", 0, "--backend", "native", "--precision", "fp32", "--repeats", 1)
    assert bench(*arguments) == 0
    assert len(restored) == 3
    monkeypatch.setattr(tradeoff_command, "session_peak_mib", lambda setup, path: 12.34)
    for _ in range(2):
        assert bench(*arguments, "--memory") == 0
        (row,) = read_rows(tmp_path / "out" / "tradeoff.csv")[-1:]
        assert row["peak_mib"] == "12.3"
    assert len(restored) == 3
    assert bench(*arguments) == 0
    assert len(read_rows(tmp_path / "out" / "tradeoff.csv")) == 1


def test_engines_that_disagree_are_not_timed(
    bench: Callable[..., int],
    restored: list[Setup],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    seen: list[Any] = []

    def refuse(names: Any, bundle: Any, work: Any) -> None:
        seen.append((work.scope, list(names), (work.height, work.width), work.threads))
        if work.scope == "bias":
            raise EdgeadaptError("native and onnxruntime do not agree.")

    monkeypatch.setattr(tradeoff, "make_peers", refuse)
    assert bench("--steps", 1, "--scope", "all", "--scope", "bias") == 2
    names = ["onnxruntime", "native", "native bf16"]
    assert seen == [("all", names, SIZE, 1), ("bias", names, SIZE, 1)]
    assert restored == []
    assert "do not agree" in capsys.readouterr().err


def test_two_bundles_of_one_name_are_two(
    tiny: Path, tmp_path: Path, bench: Callable[..., int]
) -> None:
    other = write_tiny_bundle(tmp_path / "other" / tiny.name, seed=1)
    arguments = (other, "--steps", 0, "--backend", "native", "--precision", "fp32")
    assert bench(*arguments, "--repeats", 1, "--limit", 1) == 0
    rows = read_rows(tmp_path / "out" / "tradeoff.csv")
    assert len({row["bundle"] for row in rows}) == 2
    assert len({row["weights"] for row in rows}) == 2
    assert rows[0]["psnr"] != rows[1]["psnr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "40x16", "--backend", "native"], "is 30x21, smaller than 40x16"),
        (["--size", "40"], "'40' is no WIDTHxHEIGHT"),
        (["--scope", "nose", "--backend", "native"], "no adaptation scope 'nose'"),
        (["--backend", "onnxruntime"], "nothing can be measured"),
    ],
)
def test_a_refusal_is_one_line(
    arguments: list[str], message: str, bench: Callable[..., int], capsys: Output
) -> None:
    assert bench("--steps", 0, "--precision", "bf16", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


@pytest.mark.parametrize("name", ["timings.csv", "tradeoff.csv"])
def test_a_foreign_table_is_left_alone(
    name: str, tmp_path: Path, bench: Callable[..., int], capsys: Output
) -> None:
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / name
    foreign.write_text("a,b\n1,2\n")
    assert bench() == 2
    assert "is not a table of this benchmark" in capsys.readouterr().err
    assert foreign.read_text() == "a,b\n1,2\n"
    assert [path.name for path in foreign.parent.iterdir()] == [name]


def test_memory_is_that_of_the_engine(tiny: Path) -> None:
    large = replace(SETUP, height=900, width=1000)
    peak = session_peak_mib(large, tiny)
    # Image and restored in float32 are 10.3 MiB each, and the engine holds one more of them at
    # least. To draw a photo of this size takes another 80.
    assert 30 < peak < 90
    assert session_peak_mib(replace(large, steps=0, scope=tradeoff.NO_SCOPE), tiny) < peak - 8
    with pytest.raises(EdgeadaptError, match="the memory of net on nobody could not be measured"):
        session_peak_mib(replace(SETUP, backend="nobody"), tiny)


def point(
    steps: int, ms: float, psnr: float, bundle: str = "net", backend: str = "native"
) -> Point:
    scope = "all" if steps else tradeoff.NO_SCOPE
    setup = replace(SETUP, bundle=bundle, backend=backend, steps=steps, scope=scope)
    machine = Machine("", "", "", "", "", "", "")
    return Point(setup, "", 1, 1, ms, None, psnr, 0.5, 0, machine)


def test_the_plot_shows_every_point_and_the_front() -> None:
    points = [
        point(0, 10.0, 20.0),
        point(1, 30.0, 21.0),
        point(3, 60.0, 20.5),
        point(0, 20.0, 20.004, backend="onnxruntime"),  # not better by a hundredth
        point(1, 50.0, 22.0, bundle="large"),
    ]
    assert best_points(points) == [0, 1, 4]
    (axes,) = tradeoff_figure(points).axes
    assert axes.get_xscale() == "log"
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["K=0", "K=1 all", "3", "0", "K=1 all"]
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(front.get_xdata()) == [10, 30, 50]
    assert list(front.get_ydata()) == [20, 21, 22]
    single = {
        (line.get_xdata()[0], line.get_ydata()[0]): line
        for line in axes.lines
        if line.get_marker() != "None" and len(line.get_xdata()) == 1
    }
    assert single.keys() == {(p.milliseconds, p.psnr) for p in points}
    assert single[10, 20].get_color() == single[20, 20.004].get_color()
    assert single[10, 20].get_marker() != single[20, 20.004].get_marker()
    assert single[10, 20].get_color() != single[50, 22].get_color()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "Pareto front",
        "net",
        "large",
        "native fp32",
        "onnxruntime fp32",
    ]
