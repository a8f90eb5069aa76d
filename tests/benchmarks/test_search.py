"""`edgeadapt bench search` against sessions run by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from edgeadapt.benchmarks import quality
from edgeadapt.benchmarks.search import (
    Outcome,
    Recipe,
    Space,
    choose,
    make_recipes,
    with_recipe,
)
from edgeadapt.benchmarks.search_tables import search_page
from edgeadapt.bundle import open_bundle
from edgeadapt.cli import main
from edgeadapt.errors import ConfigError
from edgeadapt.image import read_image
from edgeadapt.runtime.session import Session
from support.photos import write_pictures, write_recordings
from support.tables import read_rows
from support.tiny_bundle import write_tiny_bundle

SIZES = {"conv.bias": 0.3, "conv.weight": 0.02, "head.gain": 0.1}
COMMON = 0.05  # of tail.bias, which has no learned one


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "net.bundle", steps=2, step_size=COMMON, step_sizes=SIZES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folders of recordings to choose on and to report on."""
    return write_recordings(tmp_path / "data", {"choose/a": 2, "choose/b": 1, "report/c": 2})


def bench(bundle: Path, data: Path, *arguments: object) -> int:
    folders = ("--select", data / "choose", "--report", data / "report")
    return main(["bench", "search", str(bundle), *map(str, (*folders, *arguments))])


def psnr_by_hand(bundle: Path, folder: Path, scope: str, steps: int, size: float) -> float:
    """Mean over recordings of what a user's session gives, with one step size for all."""
    recordings = []
    for recording in sorted(folder.iterdir()):
        found = []
        for file in sorted((recording / "blur").iterdir()):
            with Session(bundle) as session:
                session.adapt(read_image(file), steps, scope, size)
                restored = session.restore(read_image(file))
            sharp = read_image(recording / "sharp" / file.name)
            found.append(peak_signal_noise_ratio(sharp, restored, data_range=255))
        recordings.append(float(np.mean(found)))
    return float(np.mean(recordings))


def check_page(page: str, tried: list[dict[str, str]], reported: int) -> None:
    """Each recipe has its cell in the grid, in order of the step size, and says how it failed."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if "|" in line
    ]
    head = next(line for line in lines if line[0] == "optimizer")
    grid = lines[lines.index(head) + 2 :][: len({(r["optimizer"], r["step_size"]) for r in tried})]
    assert [(line[0], line[1]) for line in grid] == [
        *(("adam", size) for size in ("0.3", "100000")),
        *(("sgd", size) for size in ("0.3", "100000", "learned", "learned x 3")),
    ]
    cells = {
        (*line[:2], scope): line[at] for line in grid for at, scope in enumerate(head) if at > 1
    }
    assert len(cells) == len(tried)
    for row in tried:
        cell = cells[row["optimizer"], row["step_size"], row["scope"]].strip("*")
        assert cell.startswith(f"{float(row['gain']):+.4f}")
        back = int(row["rose"]) + int(row["diverged"])
        assert (f"; {back} of 3)" in cell) == (back > 0)
        assert ("no number" in cell) == (back > 0 and row["raw_gain"] == "")
    assert sum(cell.startswith("**") for cell in cells.values()) == 1
    assert len([line for line in lines if line[0] == "net"]) == reported


def test_every_recipe_is_a_row_and_its_numbers_are_a_sessions(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    sizes = ("--step-size", 0.3, "--step-size", 1e5, "--factor", 1, "--factor", 3)
    assert bench(bundle, data, *sizes, "--scope", "all", "--scope", "bias", "-o", out) == 0
    rows = read_rows(out / "search.csv")
    tried = [row for row in rows if row["role"] == "select"]
    recipes = [(r["optimizer"], r["step_size"], r["scope"], r["steps"]) for r in tried]
    assert sorted(recipes) == sorted(
        (kind, size, scope, "2")
        for kind, size in [
            *((kind, size) for kind in ("sgd", "adam") for size in ("0.3", "100000")),
            ("sgd", "learned"),
            ("sgd", "learned x 3"),
        ]
        for scope in ("all", "bias")
    )
    plain = psnr_by_hand(bundle, data / "choose", "all", 0, 0.3)
    gains: dict[str, float] = {}
    for row in tried:
        assert (row["images"], row["recordings"]) == ("3", "2")
        assert float(row["plain"]) == pytest.approx(plain, abs=1e-9)
        if (row["optimizer"], row["step_size"]) == ("sgd", "0.3"):
            expected = psnr_by_hand(bundle, data / "choose", row["scope"], 2, 0.3)
            # The last of the steps and a restoration come from two graphs: see the test of quality.
            assert float(row["adapted"]) == pytest.approx(expected, abs=0.01)
            assert float(row["gain"]) == pytest.approx(expected - plain, abs=0.01)
            gains[row["scope"]] = expected - plain
    assert gains["all"] > 0.05, "steps that change nothing show no mistake"
    assert gains["all"] - gains["bias"] > 0.05, "nor do scopes that do the same"
    failed = [row for row in tried if row["step_size"] == "100000"]
    assert failed
    for row in failed:  # they are there, and say how they failed
        assert int(row["rose"]) + int(row["diverged"]) == 3
        assert float(row["gain"]) == 0
        assert row["raw_gain"] == "" or float(row["raw_gain"]) < -1
    assert any(int(row["rose"]) for row in failed)
    check_page((out / "search.md").read_text(), tried, len(rows) - len(tried))
    assert capsys.readouterr().out.count("choose: 3 in 2") == len(tried)


def test_learned_step_sizes_are_those_of_the_bundle_times_a_factor(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    scaled = {name: 3 * size for name, size in SIZES.items()}
    by_hand = write_tiny_bundle(
        tmp_path / "by-hand.bundle", steps=2, step_size=3 * COMMON, step_sizes=scaled
    )
    found = with_recipe(open_bundle(bundle), Recipe("sgd", "learned x 3", "all", 2))
    assert found.manifest.adaptation == open_bundle(by_hand).manifest.adaptation
    assert bench(bundle, data, "--factor", 3, "--step-size", 1e-6, "-o", tmp_path / "out") == 0
    (row,) = [
        row
        for row in read_rows(tmp_path / "out" / "search.csv")
        if (row["step_size"], row["scope"], row["role"]) == ("learned x 3", "all", "select")
    ]
    table = tmp_path / "q.csv"
    command = ["bench", "quality", str(by_hand), "--data", str(data / "choose"), "--no-plot"]
    assert main([*command, "-o", str(table)]) == 0
    last = {
        r["recording"] + r["image"]: float(r["psnr"]) for r in read_rows(table) if r["step"] == "2"
    }
    mean = (last["a000.png"] + last["a001.png"]) / 4 + last["b000.png"] / 2
    assert float(row["adapted"]) == pytest.approx(mean, abs=1e-9)
    constant = write_tiny_bundle(tmp_path / "constant.bundle", step_size=0.1)
    with pytest.raises(ConfigError, match="has no learned step sizes"):
        with_recipe(open_bundle(constant), Recipe("sgd", "learned", "all", 2))
    sizes = {
        r.step_size for r in make_recipes(open_bundle(constant), Space(["adam"], [1], [2], []))
    }
    assert sizes == {"0.1", "1"}


def test_only_the_chosen_recipe_and_the_bundles_own_are_reported(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    few = ("--optimizer", "adam", "--step-size", 0.1, "--scope", "all", "--factor", 1)
    assert bench(bundle, data, *few, "--steps", 6, "-o", out) == 0
    rows = read_rows(out / "search.csv")
    tried = [row for row in rows if row["role"] == "select"]
    able = [
        row for row in tried if float(row["best_lowered"]) <= 0.1 and float(row["best_gain"]) > 0
    ]
    assert able, "nothing gains here: the test would show nothing"
    best = max(able, key=lambda row: float(row["best_gain"]))
    (winner,) = [row for row in tried if row["chosen"] == "True"]
    assert winner == best
    assert 0 < int(winner["best_step"]) < 6, "the best step is to be reported, not the last"
    reported = [row for row in rows if row["role"] == "report"]
    keys = ("optimizer", "step_size", "scope", "steps", "chosen")
    assert sorted([row[key] for key in keys] for row in reported) == sorted(
        [
            ["sgd", "learned", "all", "2", "False"],
            [winner[key] for key in keys[:3]] + [winner["best_step"], "True"],
        ]
    )
    assert {row["images"] for row in reported} == {"2"}
    # No other recipe saw an image to report on.
    measured = {
        row["bundle"] + row["scope"]
        for row in read_rows(out / "images.csv")
        if row["recording"] == "c"
    }
    assert len(measured) == 2


def outcome(gain: float, lowered: float = 0.0) -> Outcome:
    values: dict[str, Any] = dict.fromkeys(Outcome.__dataclass_fields__)
    return Outcome(**(values | {"best_gain": gain, "best_lowered": lowered}))


def test_a_grid_is_in_the_order_of_step_sizes() -> None:
    sizes = ["0.1", "learned x 10", "1e-05", "learned", "0.001", "learned x 2"]
    recipes = [Recipe("sgd", size, "all", 5) for size in sizes]
    rows = [
        replace(
            outcome(0.1),
            recipe=recipe,
            role="select",
            gain=0.1,
            best_step=5,
            rose=0,
            diverged=0,
            blurred=20.0,
            plain=21.0,
        )
        for recipe in recipes
    ]
    lines = [line.split(" | ")[1] for line in search_page(rows)[1].splitlines()[2:]]
    assert lines == ["1e-05", "0.001", "0.1", "learned", "learned x 2", "learned x 10"]


def test_what_harms_images_or_gains_nothing_is_not_chosen() -> None:
    harmful, small, first, second = (
        outcome(0.5, 0.11),
        outcome(0.1, 0.1),
        outcome(0.2),
        outcome(0.2),
    )
    assert choose([small, harmful, first, second]) is first
    assert choose([small, harmful]) is small
    assert choose([harmful, outcome(0.0), outcome(-0.1), outcome(math.nan)]) is None


def test_a_search_goes_on_and_keeps_what_other_searches_found(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain = quality.measure_image

    def noting(session: Session, task: quality.Task, step_size: float | None) -> Any:
        seen.append(task.sample.name)
        return plain(session, task, step_size)

    monkeypatch.setattr(quality, "measure_image", noting)
    arguments = ("--scope", "heads", "--optimizer", "sgd", "--factor", 1, "-o", tmp_path / "out")
    assert bench(bundle, data, *arguments, "--step-size", 0.1) == 0
    count, before = len(seen), read_rows(tmp_path / "out" / "search.csv")
    images = tmp_path / "out" / "images.csv"
    images.write_text(
        "".join(images.read_text().splitlines(keepends=True)[:9])
    )  # two images and a row
    assert bench(bundle, data, *arguments, "--step-size", 0.1) == 0
    assert len(seen) == 2 * count - 2
    assert read_rows(tmp_path / "out" / "search.csv") == before
    assert bench(bundle, data, *arguments, "--step-size", 0.2) == 0
    after = read_rows(tmp_path / "out" / "search.csv")
    assert {row["step_size"] for row in after if row["role"] == "select"} >= {"0.1", "0.2"}


@pytest.mark.parametrize("how", ["recording", "file"])
def test_images_to_choose_on_are_never_reported_on(
    how: str, bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "recording":
        for side in ("blur", "sharp"):
            write_pictures(data / "report" / "a" / side, 1, 20, 20, seed=50)
        message = "recording 'a' is in the images to choose on and in those to report on"
    else:
        for side in ("blur", "sharp"):
            target = data / "report" / "d" / side / "other.png"
            target.parent.mkdir(parents=True)
            target.write_bytes((data / "choose" / "b" / side / "000.png").read_bytes())
        message = "are the same image, under two recordings"
    assert bench(bundle, data, "-o", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_scope_that_a_bundle_lacks_is_left_out(bundle: Path) -> None:
    found = open_bundle(bundle)
    space = Space(["sgd"], [0.1], [1.0], ["bias", "nose"])
    assert {recipe.scope for recipe in make_recipes(found, space)} == {"all", "bias"}
    space = replace(space, scopes=[], steps=7)
    assert {recipe.scope for recipe in make_recipes(found, space)} == {"all", "bias", "heads"}
    assert {recipe.steps for recipe in make_recipes(found, space)} == {7}
