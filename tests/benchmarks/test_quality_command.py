"""`edgeadapt bench quality`, its numbers against the session and scikit-image directly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from edgeadapt.benchmarks import quality
from edgeadapt.benchmarks.rows import COLUMNS
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.cli import main
from edgeadapt.errors import ConfigError
from edgeadapt.image import read_image
from edgeadapt.runtime.session import Session
from edgeadapt.shifts import SHIFTS
from edgeadapt.shipped import find_bundle
from support.photos import write_pictures, write_recordings
from support.tables import read_rows
from support.tiny_bundle import write_tiny_bundle

Output = pytest.CaptureFixture[str]
RISING = 2.0  # some steps raise the loss of some images, others do not
STEP_SIZE = 0.3  # moves the tiny network far enough for its images to change


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two recordings of two images and one, in GoPro's layout."""
    return write_recordings(tmp_path / "data", {"one": 2, "two": 1})


def bench(bundle: Path, data: Path, *arguments: object) -> int:
    return main(["bench", "quality", str(bundle), "--data", str(data), *map(str, arguments)])


def scores(image: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    psnr = peak_signal_noise_ratio(sharp, image, data_range=255)
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "channel_axis": 2}
    ssim = structural_similarity(
        sharp, image, data_range=255, use_sample_covariance=False, **options
    )
    return float(psnr), float(ssim)


def expected_rows(
    bundle: Path, data: Path, steps: int, step_size: float = STEP_SIZE
) -> dict[tuple[str, str, int], Any]:
    """Each step by an adaptation of its own: what a user gets who asks for so many steps."""
    found = {}
    with Session(bundle) as session:
        for blurred in sorted(data.glob("*/blur/*.png")):
            recording = blurred.parents[1].name
            sharp = read_image(blurred.parents[1] / "sharp" / blurred.name)
            image = read_image(blurred)
            found[recording, blurred.name, -1] = scores(image, sharp)
            for step in range(steps + 1):
                session.reset()
                if step:
                    session.adapt(image, step, step_size=step_size)
                found[recording, blurred.name, step] = scores(session.restore(image), sharp)
    return found


def test_rows_are_what_a_session_gives_after_each_step(
    tiny: Path, data: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "made" / "q.csv"
    assert bench(tiny, data, "--steps", 2, "--step-size", STEP_SIZE, "-o", out) == 0
    expected = expected_rows(tiny, data, 2)
    rows = read_rows(out)
    assert len(rows) == len(expected) == 12
    for row in rows:
        psnr, ssim = expected[row["recording"], row["image"], int(row["step"])]
        # The last of the steps and a restoration come from two graphs, so a value may be rounded
        # to the level beside it: one of 1,890 moves PSNR and SSIM by less than this.
        assert float(row["psnr"]) == pytest.approx(psnr, abs=0.01)
        assert float(row["ssim"]) == pytest.approx(ssim, abs=1e-3)
    first = [expected["one", "000.png", step][0] for step in range(3)]
    # Steps that change nothing, or go back every time, would show no mistake.
    assert abs(first[1] - first[0]) > 0.05
    assert abs(first[2] - first[1]) > 0.05

    def mean(step: int) -> float:
        one = np.mean([expected["one", name, step][0] for name in ("000.png", "001.png")])
        return float((one + expected["two", "000.png", step][0]) / 2)

    table = capsys.readouterr().out
    (line,) = [line for line in table.splitlines() if line.startswith("tiny")]
    cells = line.split()
    assert cells[1:5] == ["none", "3", "in", "2"]
    for cell, step in zip(cells[5:9], (-1, 0, 1, 2), strict=True):
        assert float(cell) == pytest.approx(mean(step), abs=0.011)
    assert float(cells[9]) == pytest.approx(mean(2) - mean(0), abs=0.021)
    with Image.open(out.with_suffix(".png")) as plot:
        assert plot.format == "PNG"
        assert min(plot.size) > 300


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every image that is measured."""
    seen: list[str] = []
    plain = quality.measure_image

    def noting(session: Session, task: quality.Task, step_size: float | None) -> Any:
        seen.append(f"{task.model.name} {task.shift} {task.sample.name}")
        return plain(session, task, step_size)

    monkeypatch.setattr(quality, "measure_image", noting)
    return seen


def test_a_run_goes_on_where_it_was_cut_short(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    out = tmp_path / "q.csv"
    arguments = ("--steps", 1, "-o", out, "--no-plot")
    seen = counting(monkeypatch)
    assert bench(tiny, data, *arguments) == 0
    whole, table = out.read_text(), capsys.readouterr().out
    assert len(seen) == 3
    assert not out.with_suffix(".png").exists()
    # Killed in the middle of the second image's last line.
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:6]) + lines[6][:30])
    assert bench(tiny, data, *arguments) == 0
    assert len(seen) == 5
    assert out.read_text() == whole
    assert capsys.readouterr().out == table
    assert bench(tiny, data, *arguments) == 0
    assert len(seen) == 5
    # Other settings and another picture are other work.
    assert bench(tiny, data, *arguments, "--step-size", 0.1) == 0
    assert len(seen) == 8
    picture = data / "two" / "blur" / "000.png"
    picture.write_bytes((data / "one" / "blur" / "001.png").read_bytes())
    assert bench(tiny, data, *arguments) == 0
    assert len(seen) == 9
    assert out.read_text().startswith(whole)


def test_precision_is_the_sessions_and_no_rows_are_shared(data: Path, tmp_path: Path) -> None:
    # The tiny network is one convolution: it has no activation to store in bf16, which changes
    # nothing of it where the CPU cannot multiply in bf16 either.
    nano, out = find_bundle("nano"), tmp_path / "q.csv"
    arguments = ("--limit", 1, "--steps", 1, "--backend", "native")
    for precision in ("fp32", "bf16"):
        again = ("--precision", precision, "-o", out, "--no-plot")
        assert bench(nano, data, *arguments, *again) == 0
    rows = [row for row in read_rows(out) if row["recording"] == "two" and row["step"] != "-1"]
    assert [(row["precision"], row["step"]) for row in rows] == [
        ("fp32", "0"), ("fp32", "1"), ("bf16", "0"), ("bf16", "1")
    ]  # fmt: skip
    image = read_image(data / "two" / "blur" / "000.png")
    sharp = read_image(data / "two" / "sharp" / "000.png")
    with Session(nano, "native", precision="bf16") as session:
        adapted = session.adapt(image, 1, keep_steps=True)
    for row, restored in zip(rows[2:], adapted.restored_steps, strict=True):
        assert float(row["psnr"]) == scores(restored, sharp)[0]
    # Were bf16 no other than fp32 here, nothing would have been tested. The loss, since on 8 bits
    # two images may well be the same.
    assert rows[1]["loss"] != rows[3]["loss"]


def test_bundles_that_differ_in_weights_or_steps_share_no_rows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counting(monkeypatch)
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"step_size": 0.06}, {"optimizer": "adam"}]
    changes.append({"step_sizes": {"conv.bias": 0.06}})
    for number, change in enumerate(changes):
        bundle = write_tiny_bundle(tmp_path / f"{number}" / "net.bundle", **change)
        assert bench(bundle, data, "--limit", 1, "-o", tmp_path / "q.csv", "--no-plot") == 0
        assert len(seen) == 2 * (number + 1)


def test_an_adaptation_that_is_taken_back_counts_as_plain_inference(
    data: Path, tmp_path: Path, capsys: Output
) -> None:
    wild = write_tiny_bundle(tmp_path / "wild.bundle", step_size=1e4)
    out = tmp_path / "q.csv"
    assert bench(wild, data, "--steps", 2, "-o", out) == 0
    rows = read_rows(out)
    plain = {row["image"] + row["recording"]: row["psnr"] for row in rows if row["step"] == "0"}
    after = [row for row in rows if int(row["step"]) > 0]
    assert len(after) == 6
    for row in after:
        assert row["reverted"] == "True"
        assert row["psnr"] == plain[row["image"] + row["recording"]]
    # What the steps themselves do is on record all the same: here one step leads to noise.
    harmed = [row for row in after if row["raw_psnr"]]
    assert harmed
    assert all(float(row["raw_psnr"]) < float(row["psnr"]) - 1 for row in harmed)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wild")]
    assert line.split()[-2:] == ["0%", "3"]


def test_each_step_is_taken_back_by_its_own_loss(tiny: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.csv"
    assert bench(tiny, data, "--steps", 4, "--step-size", RISING, "-o", out) == 0
    rows = read_rows(out)
    expected = expected_rows(tiny, data, 4, RISING)
    for row in rows:
        psnr, _ = expected[row["recording"], row["image"], int(row["step"])]
        assert float(row["psnr"]) == pytest.approx(psnr, abs=0.01)
    states = {row["reverted"] for row in rows if row["step"] in ("1", "2", "3")}
    assert states == {"True", "False"}, "the last step alone would be the session's own answer"


def test_a_control_is_adapted_as_the_model_is(data: Path, tmp_path: Path, capsys: Output) -> None:
    sizes = {"conv.bias": STEP_SIZE, "tail.bias": 0.01}
    model = write_tiny_bundle(tmp_path / "meta.bundle", 1, steps=1, step_sizes=sizes)
    control = write_tiny_bundle(tmp_path / "joint.bundle", 2, steps=4, step_size=1e-6)
    same = write_tiny_bundle(tmp_path / "same.bundle", 2, steps=1, step_sizes=sizes)
    out = tmp_path / "q.csv"
    assert bench(model, data, "--control", control, "-o", out) == 0
    assert bench(same, data, "-o", tmp_path / "same.csv", "--no-plot") == 0
    rows = [row for row in read_rows(out) if row["model"] == "joint (control)"]
    wanted = read_rows(tmp_path / "same.csv")
    columns = ("image", "step", "steps", "psnr", "ssim", "loss")
    assert [[r[c] for c in columns] for r in rows] == [[r[c] for c in columns] for r in wanted]
    assert len(rows) == 9
    assert "joint (control)" in capsys.readouterr().out


def test_every_shift_is_a_row(tiny: Path, data: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "q.csv"
    assert bench(tiny, data, "--steps", 0, "--limit", 1, "--shift", "all", "-o", out) == 0
    blurred = {row["shift"]: row["psnr"] for row in read_rows(out) if row["step"] == "-1"}
    assert len(set(blurred.values())) == len(SHIFTS)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = [row for row in rows if row[0] == "tiny"]
    assert [row[1] for row in printed] == list(SHIFTS)
    # The same as a table for a document.
    lines = out.with_suffix(".md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [" ".join(row).split() for row in cells if row[0] == "tiny"] == printed
    assert len({len(row) for row in cells[: 2 + len(SHIFTS)]}) == 1
    assert bench(tiny, data, "--steps", 0, "--shift", "half", "--shift", "jpeg30") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if row[0] == "tiny"] == ["half", "jpeg30"]


def test_size_takes_the_middle_of_larger_images(tiny: Path, data: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data" / "small" / "blur", 1, 12, 40, seed=7)
    write_pictures(tmp_path / "data" / "small" / "sharp", 1, 12, 40, seed=8)
    out = tmp_path / "q.csv"
    assert bench(tiny, data, "--steps", 0, "--size", "20x15", "-o", out) == 0
    found = {
        (r["recording"], r["image"]): float(r["psnr"]) for r in read_rows(out) if r["step"] == "-1"
    }
    assert len(found) == 4
    for (recording, name), psnr in found.items():
        pair = [read_image(data / recording / side / name) for side in ("blur", "sharp")]
        rows, cells = (
            (slice(0, 12), slice(10, 30)) if recording == "small" else (slice(3, 18), slice(5, 25))
        )
        assert psnr == pytest.approx(scores(pair[0][rows, cells], pair[1][rows, cells])[0])
    # The whole image is other work.
    assert bench(tiny, data, "--steps", 0, "-o", out) == 0
    assert len(read_rows(out)) == 16


def test_an_image_smaller_than_the_window_has_no_ssim(
    tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    write_pictures(tmp_path / "small", 1, 9, 30)
    out = tmp_path / "q.csv"
    assert bench(tiny, tmp_path / "small", "--steps", 1, "-o", out) == 0
    assert {row["ssim"] for row in read_rows(out)} == {""}
    assert "nan" in capsys.readouterr().out
    before = out.read_text()
    assert bench(tiny, tmp_path / "small", "--steps", 1, "-o", out) == 0
    assert out.read_text() == before


REFUSALS: dict[str, tuple[Sequence[str], str]] = {
    "no folder": (["--data", "nowhere"], "nowhere: no such folder"),
    "no images": (["--data", "."], "no images found for layout 'auto'"),
    "no table": (["-o", "q.txt"], "--out must end in .csv"),
    "foreign table": (["-o", "foreign.csv"], "its columns are others"),
    "damaged table": (["-o", "damaged.csv"], "line 2 cannot be read"),
    "no scope": (["--scope", "nose"], "no adaptation scope 'nose'"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_is_one_line(
    what: str,
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:

    arguments, message = REFUSALS[what]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("foreign.csv").write_text("a,b\n1,2\n")
    Path("damaged.csv").write_text(",".join(COLUMNS) + "\n" + "x," * (len(COLUMNS) - 1) + "\n")
    assert bench(tiny, data, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def test_a_control_of_another_network_is_refused(tiny: Path) -> None:
    found = open_bundle(tiny)
    fewer = replace(found.manifest, parameters=found.manifest.parameters[:-1])
    other = Bundle(Path("other.bundle"), fewer)
    with pytest.raises(ConfigError, match=r"other\.bundle: no BUNDLE has the parameters"):
        quality.make_models([found], [other])


def test_bundles_of_one_name_are_told_apart(data: Path, tmp_path: Path, capsys: Output) -> None:
    bundles = [
        write_tiny_bundle(tmp_path / place / "net.bundle", seed)
        for seed, place in enumerate(["first", "second"])
    ]
    assert bench(bundles[0], data, bundles[1], "--steps", 1) == 0
    table = capsys.readouterr().out
    assert "first/net " in table
    assert "second/net " in table


def test_it_needs_no_torch(tiny: Path, data: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'lightning_fabric'):\n"
        "            raise ImportError(f'{name} is not on the device')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from edgeadapt.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["bench", "quality", str(tiny), "--data", str(data), "--steps", "1", "--limit", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "-o", str(tmp_path / "q.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "q.png").is_file()
