"""`edgeadapt bench video` against a loop written by hand and against `edgeadapt run --every`."""

from __future__ import annotations

from pathlib import Path

import pytest
from skimage.metrics import peak_signal_noise_ratio

from edgeadapt.benchmarks import video
from edgeadapt.cli import main
from edgeadapt.image import read_image
from edgeadapt.runtime.session import Session
from support.photos import write_recordings
from support.tables import read_rows
from support.tiny_bundle import write_tiny_bundle

Output = pytest.CaptureFixture[str]
STEP_SIZE = 0.3  # moves the tiny network far enough for its images to change
FRAMES = {"one": 5, "two": 3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clips, in GoPro's layout."""
    return write_recordings(tmp_path / "data", FRAMES)


def bench(bundle: Path, data: Path, *arguments: object) -> int:
    return main(["bench", "video", str(bundle), "--data", str(data), *map(str, arguments)])


def by_hand(bundle: Path, folder: Path, stride: int) -> list[float]:
    """A session of its own for every run of frames that share their weights."""
    images = [read_image(file) for file in sorted((folder / "blur").iterdir())]
    sharps = [read_image(file) for file in sorted((folder / "sharp").iterdir())]
    found = []
    for start in range(0, len(images), stride or len(images)):
        with Session(bundle) as session:
            if stride:
                session.adapt(images[start], 2, step_size=STEP_SIZE)
            for place in range(start, min(start + (stride or len(images)), len(images))):
                restored = session.restore(images[place])
                found.append(peak_signal_noise_ratio(sharps[place], restored, data_range=255))
    return found


def test_frames_are_restored_by_the_weights_of_the_last_that_was_adapted_to(
    tiny: Path, data: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "v.csv"
    strides = ("--stride", 1, "--stride", 2, "--stride", 10)
    assert bench(tiny, data, "--steps", 2, "--step-size", STEP_SIZE, *strides, "-o", out) == 0
    rows = read_rows(out)
    expected = {
        (name, stride): by_hand(tiny, data / name, stride)
        for name in FRAMES
        for stride in (0, 1, 2, 10)
    }
    for (name, stride), psnrs in expected.items():
        own = [r for r in rows if r["recording"] == name and int(r["stride"]) == stride]
        assert [float(row["psnr"]) for row in own] == pytest.approx(psnrs, abs=1e-9)
        adapted = [int(row["frame"]) for row in own if row["adapted"] == "True"]
        assert adapted == ([] if stride == 0 else list(range(0, FRAMES[name], stride)))
        before = peak_signal_noise_ratio(
            read_image(data / name / "sharp" / "001.png"),
            read_image(data / name / "blur" / "001.png"),
            data_range=255,
        )
        assert float(own[1]["blurred_psnr"]) == pytest.approx(before)
    # Strides that made no difference would hide every mistake.
    assert len({tuple(round(p, 3) for p in expected["one", j]) for j in (0, 1, 2, 10)}) == 4

    def mean(stride: int) -> float:
        one, two = expected["one", stride], expected["two", stride]
        return (sum(one) / len(one) + sum(two) / len(two)) / 2

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {int(line[1]): line for line in lines if line[0] == "tiny"}
    assert list(table) == [0, 1, 2, 10]
    for stride, line in table.items():
        assert float(line[6]) == pytest.approx(mean(stride), abs=6e-4)
        if stride:
            assert float(line[8]) == pytest.approx(mean(stride) - mean(0), abs=1e-4)
    page = out.with_suffix(".md").read_text()
    assert page.count("| tiny |") == 4


def test_a_stride_is_what_run_every_does(tiny: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.csv"
    assert bench(tiny, data, "--stride", 3, "--step-size", STEP_SIZE, "-o", out) == 0
    run = ["run", str(tiny), str(data / "one" / "blur"), "-o", str(tmp_path / "restored")]
    assert main([*run, "--every", "3", "--step-size", str(STEP_SIZE)]) == 0
    own = [r for r in read_rows(out) if r["recording"] == "one" and r["stride"] == "3"]
    assert len(own) == 5
    for row in own:
        sharp = read_image(data / "one" / "sharp" / row["image"])
        restored = read_image(tmp_path / "restored" / row["image"])
        psnr = peak_signal_noise_ratio(sharp, restored, data_range=255)
        assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-9)


def test_precision_is_that_of_run(tiny: Path, data: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "v.csv", tmp_path / "restored"
    way = ["--backend", "native", "--precision", "bf16", "--step-size", str(STEP_SIZE)]
    assert bench(tiny, data, "--stride", 2, *way, "-o", out) == 0
    run = ["run", str(tiny), str(data / "one" / "blur"), "-o", str(folder), "--every", "2"]
    assert main([*run, *way]) == 0
    own = [r for r in read_rows(out) if r["recording"] == "one" and r["stride"] == "2"]
    assert {row["precision"] for row in own} == {"bf16"}
    for row in own:
        sharp = read_image(data / "one" / "sharp" / row["image"])
        restored = read_image(folder / row["image"])
        psnr = peak_signal_noise_ratio(sharp, restored, data_range=255)
        assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-9)


def test_an_adaptation_that_is_taken_back_leaves_the_bundles_weights(
    data: Path, tmp_path: Path
) -> None:
    wild = write_tiny_bundle(tmp_path / "wild.bundle", step_size=1e4)
    out = tmp_path / "v.csv"
    assert bench(wild, data, "--stride", 2, "-o", out) == 0
    rows = read_rows(out)
    plain = [row["psnr"] for row in rows if row["stride"] == "0"]
    assert [row["psnr"] for row in rows if row["stride"] == "2"] == plain
    back = [(r["frame"], r["adapted"]) for r in rows if r["reverted"] == "True"]
    assert back == [(str(frame), "True") for frame in (0, 2, 4, 0, 2)]


def test_a_run_goes_on_with_the_first_clip_that_is_not_whole(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    seen: list[tuple[str, int]] = []
    plain = video.measure_clip

    def noting(session: Session, clip: video.Clip, *rest: object) -> list[video.FrameRow]:
        seen.append((clip.key.recording, clip.key.stride))
        return plain(session, clip, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(video, "measure_clip", noting)
    out = tmp_path / "v.csv"
    arguments = ("--stride", 2, "-o", out)
    assert bench(tiny, data, *arguments) == 0
    assert seen == [("one", 0), ("two", 0), ("one", 2), ("two", 2)]
    whole, table = out.read_text(), capsys.readouterr().out
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:7]) + lines[7][:20])  # in the middle of the second clip
    assert bench(tiny, data, *arguments) == 0
    assert seen[4:] == [("two", 0), ("one", 2), ("two", 2)]
    assert out.read_text() == whole
    assert capsys.readouterr().out == table
    # Another number of frames is another clip.
    assert bench(tiny, data, *arguments, "--frames", 2) == 0
    assert len(seen) == 11
    assert {r["frame"] for r in read_rows(out)[16:]} == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "v.txt"], "--out must end in .csv"),
        (["--scope", "nose"], "no adaptation scope 'nose'"),
        (["--stride", "0"], "--stride"),
        (["--step-size", "-1"], "step_size must be a finite number"),
    ],
)
def test_a_refusal_is_one_line(
    arguments: list[str], message: str, tiny: Path, data: Path, capsys: Output
) -> None:
    assert bench(tiny, data, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
