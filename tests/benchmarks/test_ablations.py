"""`edgeadapt bench ablations` at a tiny scale: its rows against training and measuring by hand."""

from __future__ import annotations

import csv
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from edgeadapt.benchmarks import ablation_runs
from edgeadapt.benchmarks.ablations import BASE, only, read_suite
from edgeadapt.cli import main
from edgeadapt.errors import ConfigError
from edgeadapt.image import read_image
from edgeadapt.runtime.session import Session
from edgeadapt.training.checkpoint import load_checkpoint, restore_network
from edgeadapt.training.config import JointConfig, MetaConfig, read_config
from support.photos import write_pictures

BASE_TOML = """
[ablations]
rows = ["blind", "seeing", "k1", "k2", "wild", "after_wild", "video"]
report = ["report"]
size = [20, 24]
clip = "clip"
frames = 3
curves = ["k2", "k1"]
control = "seeing"
[network]
widths = [4, 6]
n_scales = 2
blocks = 1
share_scales = true
[data]
crop = 16
[[data.train]]
kind = "sharp"
path = "photos"
[joint]
iterations = 4
batch = 2
learning_rate = 3e-3
schedule = "constant"
[meta]
iterations = 2
batch = 1
order = 1
steps = 2
step_size = 1e-2
learn_step_sizes = true
"""
ROWS = {
    "blind": '[row]\ntitle = "blind"\ngroup = "s"\nstage = "joint"\n[network]\naux_branch = false',
    "seeing": '[row]\ntitle = "auxiliary"\ngroup = "s"\nstage = "joint"',
    "k1": '[row]\ntitle = "K=1"\ngroup = "k"\nstage = "meta"\nstart = "seeing"\n[meta]\nsteps = 1',
    "k2": '[row]\ntitle = "K=2"\ngroup = "k"\nstage = "meta"\nstart = "seeing"',
    "wild": '[row]\ntitle = "wild"\ngroup = "k"\nstage = "joint"\n[joint]\nlearning_rate = 1e30',
    "after_wild": '[row]\ntitle = "after"\ngroup = "k"\nstage = "meta"\nstart = "wild"',
    "video": '[row]\ntitle = "j"\ngroup = "v"\nstage = "stride"\nstart = "k2"\nstrides = [1, 2]',
}
Output = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Photos, pairs to report on, a clip, and the configurations."""
    write_pictures(tmp_path / "photos", 3, 40, 44)
    for seed, name in enumerate(["report/a", "report/b", "clip"]):
        for side, folder in enumerate(("blur", "sharp")):
            write_pictures(
                tmp_path / name / folder, 4 if name == "clip" else 1, 21, 30, 2 * seed + side
            )
    write_suite(tmp_path / "configs")
    return tmp_path


def write_suite(folder: Path, base: str = BASE_TOML, **changes: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "base.toml").write_text(base)
    for name, text in (ROWS | changes).items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def bench(place: Path, *arguments: object, out: str = "out") -> int:
    given = ["--data", place, "-o", place / out, "--configs", place / "configs", "--threads", 1]
    return main(["bench", "ablations", *map(str, (*given, *arguments))])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def middle(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:20, 3:27])  # of 21x30


def mean_psnr(place: Path, restore: object) -> float:
    found = []
    for recording in ("a", "b"):
        blurred, sharp = (
            middle(read_image(place / "report" / recording / side / "000.png"))
            for side in ("blur", "sharp")
        )
        found.append(peak_signal_noise_ratio(sharp, restore(blurred), data_range=255))  # type: ignore[operator]
    return float(np.mean(found))


@pytest.mark.slow
def test_every_row_is_trained_and_measured_by_one_command(place: Path, capsys: Output) -> None:
    assert bench(place) == 0
    rows = {(row["name"], row["stride"]): row for row in read(place / "out" / "ablations.csv")}
    videos = [("video", stride) for stride in ("0", "1", "2")]
    assert list(rows) == [(name, "") for name in ROWS if name != "video"] + videos
    bundles, runs = place / "out" / "bundles", place / "out" / "runs"

    # No bundle can be made of a network without an auxiliary branch.
    (folder,) = runs.glob("blind-*")
    network = restore_network(load_checkpoint(folder / "last.pt"), folder)
    assert not network.config.aux_branch

    def by_torch(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1
        with torch.no_grad():
            y = network.restore(x)[0].numpy().transpose(1, 2, 0)
        return ((y + 1) * 127.5).clip(0, 255).round().astype(np.uint8)

    assert float(rows["blind", ""]["plain"]) == pytest.approx(mean_psnr(place, by_torch), abs=0.01)
    assert rows["blind", ""]["adapted"] == ""

    for name, steps in (("k1", 1), ("k2", 2)):
        with Session(bundles / f"{name}.bundle") as session:

            def adapted(image: np.ndarray, session: Session = session) -> np.ndarray:
                session.reset()
                assert not session.adapt(image).reverted
                return session.restore(image)

            row = rows[name, ""]
            assert (row["steps"], row["iterations"]) == (str(steps), "2")
            plain = mean_psnr(place, session.restore)
            # Restored by the step's graph and by the restoration's: a level apart here and there.
            assert float(row["adapted"]) == pytest.approx(mean_psnr(place, adapted), abs=0.02)
            assert float(row["plain"]) == pytest.approx(plain, abs=1e-9)

    # What diverged is a row, and so is what would have started from it.
    assert "not a finite number" in rows["wild", ""]["failed"]
    assert rows["after_wild", ""]["failed"] == "wild, which it starts from, failed."

    clip = [read_image(file) for file in sorted((place / "clip" / "blur").iterdir())][:3]
    sharp = [read_image(file) for file in sorted((place / "clip" / "sharp").iterdir())]
    with Session(bundles / "k2.bundle") as session:
        found = []
        for index, frame in enumerate(clip):
            if index % 2 == 0:
                session.reset()
                session.adapt(middle(frame))
            restored = session.restore(middle(frame))
            found.append(peak_signal_noise_ratio(middle(sharp[index]), restored, data_range=255))
    assert float(rows["video", "2"]["adapted"]) == pytest.approx(np.mean(found), abs=1e-9)
    assert rows["video", "2"]["images"] == "3"

    page = (place / "out" / "ablations.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("**")] == [
        "**s**",
        "**k**",
        "**v**",
    ]
    assert page.count("\n| ") == 3 * 2 + len(rows)
    assert "failed: training: not a finite number" in page
    for name in ("steps.png", "steps-psnr.png"):
        with Image.open(place / "out" / name) as plot:
            assert plot.format == "PNG"
    assert "7/7 video: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_row_is_what_training_by_hand_gives(place: Path) -> None:
    assert bench(place, "--only", "k1") == 0
    names = [row["name"] for row in read(place / "out" / "ablations.csv")]
    assert names == ["seeing", "k1"]
    by_hand = BASE_TOML[BASE_TOML.index("[network]") :].replace("steps = 2", "steps = 1")
    (place / "hand.toml").write_text(by_hand)
    common = [str(place / "hand.toml"), "--data", str(place), "--threads", "1"]
    joint, meta = place / "joint", place / "meta"
    assert main(["train", "joint", *common, "-o", str(joint)]) == 0
    assert main(["train", "meta", *common, "-o", str(meta), "--start", str(joint / "last.pt")]) == 0
    for kind, name in (("seeing", joint), ("k1", meta)):
        (folder,) = (place / "out" / "runs").glob(f"{kind}-*")
        own, other = (load_checkpoint(path / "last.pt") for path in (folder, name))
        assert own.iteration == other.iteration
        for key, weight in own.weights.items():
            assert torch.equal(weight, other.weights[key]), key


@pytest.mark.slow
def test_what_is_there_is_not_made_again(
    place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    plain = ablation_runs.train_row

    def noting(place: ablation_runs.Place, row: ablation_runs.Ablation) -> bool:
        trained.append(row.name)
        return plain(place, row)

    monkeypatch.setattr(ablation_runs, "train_row", noting)
    assert bench(place, "--only", "k2", "--minutes", 0) == 0
    assert trained == []
    assert "The time is up" in capsys.readouterr().out
    assert bench(place, "--only", "seeing") == 0
    assert bench(place, "--only", "k2") == 0
    assert trained == ["seeing", "k2"]
    before = (place / "out" / "ablations.csv").read_text()
    assert bench(place, "--only", "k2") == 0
    assert trained == ["seeing", "k2"]
    assert (place / "out" / "ablations.csv").read_text() == before
    # Another picture to report on: measured again, not trained again.
    checkpoints = {f: f.stat().st_mtime_ns for f in (place / "out" / "runs").rglob("last.pt")}
    write_pictures(place / "other", 1, 21, 30, seed=77)
    (place / "other" / "000.png").replace(place / "report" / "a" / "blur" / "000.png")
    assert bench(place, "--only", "k2") == 0
    assert len(read(place / "out" / "ablations.csv")) == 4
    assert {f: f.stat().st_mtime_ns for f in checkpoints} == checkpoints
    # Another budget is another row; that of meta training follows.
    assert bench(place, "--only", "k2", "--iterations", 6) == 0
    rows = read(place / "out" / "ablations.csv")[4:]
    assert [(row["name"], row["iterations"]) for row in rows] == [("seeing", "6"), ("k2", "3")]


def test_the_digest_is_of_what_decides_the_result(place: Path) -> None:
    def digests(folder: Path, iterations: int | None = None) -> dict[str, str]:
        return {row.name: row.digest for row in read_suite(folder, iterations).rows}

    first = digests(place / "configs")
    assert len(set(first.values())) == len(first)
    logged = write_suite(place / "logged", BASE_TOML + "[run]\nlog_every = 7\n")
    assert digests(logged) == first
    seed = digests(
        write_suite(place / "seed", BASE_TOML.replace("crop = 16", "crop = 16\nseed = 3"))
    )
    assert not set(seed.values()) & set(first.values())
    # Whoever starts from a row changes with it.
    changed = digests(
        write_suite(place / "changed", seeing=ROWS["seeing"] + "\n[joint]\nbatch = 4")
    )
    assert {name for name in first if changed[name] != first[name]} == {
        "seeing",
        "k1",
        "k2",
        "video",
    }
    steps = digests(write_suite(place / "meta", BASE_TOML.replace("order = 1", "order = 2")))
    assert {name for name in first if steps[name] == first[name]} == {"blind", "seeing", "wild"}
    assert digests(place / "configs", 4) == first
    assert digests(place / "configs", 8) != first
    other = BASE_TOML.replace("[joint]", '[joint]\nrestoration = "psnr"')
    assert not set(digests(write_suite(place / "other", other)).values()) & set(first.values())


def test_the_rows_that_were_measured_are_those_that_ship() -> None:
    results = Path(str(files("edgeadapt.benchmarks"))) / "results" / "ablations.csv"
    with results.open(newline="", encoding="utf-8") as file:
        measured = {(row["name"], row["digest"]) for row in csv.DictReader(file)}
    assert measured == {(row.name, row.digest) for row in read_suite(iterations=1_200).rows}


REFUSALS = {
    "unknown key": ({"k1": ROWS["k1"] + "\nstepz = 2"}, "k1.toml: unknown key 'stepz' in [meta]"),
    "unknown row key": ({"k1": ROWS["k1"].replace("title", "name")}, "k1.toml:"),
    "start later": (
        {"seeing": ROWS["k1"].replace('"seeing"', '"k2"')},
        "starts from 'k2', which is no row",
    ),
    "no start": ({"k2": ROWS["k2"].replace('start = "seeing"', "")}, "must have a start"),
    "no TOML": ({"k2": "row"}, "k2.toml: not a readable TOML file"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_wrong_row_is_refused_before_the_work(what: str, place: Path, capsys: Output) -> None:
    changes, message = REFUSALS[what]
    write_suite(place / "configs", **changes)
    assert bench(place) == 2
    assert message in capsys.readouterr().err
    assert not (place / "out").exists()


def test_a_wrong_name_is_refused(place: Path) -> None:
    write_suite(place / "configs", BASE_TOML.replace('control = "seeing"', 'control = "nobody"'))
    with pytest.raises(ConfigError, match="names 'nobody', no row"):
        read_suite(place / "configs")
    write_suite(place / "configs")
    with pytest.raises(ConfigError, match=r"no row 'k9'.*rows: blind, seeing"):
        only(read_suite(place / "configs"), {"k9"})


def changed_keys(base: JointConfig | MetaConfig, own: JointConfig | MetaConfig) -> set[str]:
    """The fields in which two sections differ."""
    first, second = asdict(base), asdict(own)
    return {key for key in first if first[key] != second[key]}


def test_the_rows_that_ship_differ_in_what_they_are_about_and_nothing_else() -> None:
    suite = read_suite()
    folder = Path(str(files("edgeadapt.training"))) / "configs" / "ablations"
    assert {file.stem for file in folder.glob("*.toml")} == {row.name for row in suite.rows} | {
        BASE
    }
    base = suite.row("auxiliary").config  # the base itself
    for row in suite.rows:
        assert row.config.data == base.data, row.name
        light = {"adaptation_weight"} if row.row.stage == "joint" else set()
        assert changed_keys(base.joint, row.config.joint) <= light, row.name
        allowed = {"structure": set(), "video": set(), "steps": {"steps", "batch"}}
        recipe = {"order", "learn_step_sizes", "step_size", "inner_optimizer", "aux_update", "loss"}
        changed = changed_keys(base.meta, row.config.meta)
        assert changed <= allowed.get(row.row.group, recipe), row.name
        if row.row.stage == "meta":
            start = suite.row(row.row.start).config
            assert row.config.network == start.network, row.name
    grid = {
        (r.config.meta.steps, r.config.meta.batch) for r in suite.rows if r.row.group == "steps"
    }
    assert grid == {(k, n) for k in (1, 3, 5) for n in (1, 3)}
    assert suite.row("stride").row.strides == (1, 3, 5, 10)
    # What is measured is not trained on: of pairs, whole recordings are apart.
    trained = {source.path for source in base.data.train}
    for path in (*suite.config.report, suite.config.clip):
        assert not any(path.startswith(other) or other.startswith(path) for other in trained), path
    nano = read_config("nano")
    assert base.network == nano.network
