from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.cli import main
from edgeadapt.image import read_image, write_image
from edgeadapt.runtime.session import Session

Output = pytest.CaptureFixture[str]


def photo(seed: int, height: int = 21, width: int = 34) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four images of several sizes and formats."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(["a.png", "b.bmp", "c.webp", "[bold]d.tif"]):
        write_image(folder / name, photo(seed, 21 + seed))
    (folder / "notes.txt").write_text("not an image, and not looked at")
    return folder


def run(tiny: Path, *arguments: object) -> int:
    return main(["run", str(tiny), *map(str, arguments)])


def document(capsys: Output) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_restored_as_the_session_would(
    tiny: Path, photos: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "made" / "out"
    assert run(tiny, photos, "-o", out, "--steps", 2, "--step-size", 0.2) == 0
    assert names(out) == ["[bold]d.png", "a.png", "b.png", "c.png"]
    table = capsys.readouterr().out
    with Session(tiny) as session:
        for source in ("a.png", "b.bmp", "c.webp", "[bold]d.tif"):
            image = read_image(photos / source)
            session.reset()
            losses = session.adapt(image, 2, step_size=0.2).losses
            result = read_image((out / source).with_suffix(".png"))
            assert np.array_equal(result, session.restore(image))
            row = next(line for line in table.splitlines() if source in line)
            assert f"{losses[0]:.6g}" in row
            assert f"{losses[-1]:.6g}" in row


def test_no_steps_is_plain_inference_bit_for_bit(tiny: Path, photos: Path, tmp_path: Path) -> None:
    assert run(tiny, photos / "a.png", "-o", tmp_path / "a.webp", "--steps", 0) == 0
    with Session(tiny) as session:
        expected = session.restore(read_image(photos / "a.png"))
    assert np.array_equal(read_image(tmp_path / "a.webp"), expected)


def test_the_json_document(tiny: Path, photos: Path, tmp_path: Path, capsys: Output) -> None:
    assert run(tiny, photos / "*.png", "-o", tmp_path / "o", "--scope", "bias", "--json") == 0
    found = document(capsys)
    (image,) = found.pop("images")
    expected = {"bundle": str(tiny), "steps": 3, "scope": "bias", "every": 1, "step_size": None}
    assert found == expected
    with Session(tiny) as session:
        done = session.adapt(read_image(photos / "a.png"), scope="bias")
    assert image["input"] == str(photos / "a.png")
    assert image["output"] == str(tmp_path / "o" / "a.png")
    assert (image["width"], image["height"], image["reverted"]) == (34, 21, "")
    assert image["losses"] == list(done.losses)
    assert len(image["step_seconds"]) == 3
    assert image["restore_seconds"] > 0
    assert image["before"] is None


@pytest.mark.parametrize("out", ["v1.2/", "there.png", "plain"])
def test_a_folders_name_may_have_a_suffix(
    tiny: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").mkdir()
    assert run(tiny, photos / "a.png", photos / "b.bmp", "-o", out, "--steps", 0) == 0
    assert names(tmp_path / out) == ["a.png", "b.png"]


def test_kept_steps_lie_beside_the_result(tiny: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert run(tiny, photos / "a.png", "-o", out, "--steps", 2, "--keep-steps") == 0
    assert names(out) == ["a.png", "a.step0.png", "a.step1.png", "a.step2.png"]
    assert np.array_equal(read_image(out / "a.png"), read_image(out / "a.step2.png"))


def test_the_weights_serve_the_images_between(tiny: Path, tmp_path: Path, capsys: Output) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(5):
        write_image(folder / f"{index}.png", photo(index))
    (folder / "2.png").write_text("damaged: the next frame takes its turn")
    out = tmp_path / "o"
    assert run(tiny, folder, "-o", out, "--every", 2, "--step-size", 0.3, "--json") == 2
    adapted = [bool(image.get("losses")) for image in document(capsys)["images"]]
    assert adapted == [True, False, False, True, True]
    with Session(tiny) as session:
        for index, adapt_to in ((0, 0), (1, 0), (3, 3), (4, 4)):
            session.reset()
            session.adapt(photo(adapt_to), step_size=0.3)
            result = read_image(out / f"{index}.png")
            assert np.array_equal(result, session.restore(photo(index))), index


@pytest.mark.parametrize("as_folder", [True, False])
def test_quality_against_a_reference(
    tiny: Path, photos: Path, tmp_path: Path, capsys: Output, as_folder: bool
) -> None:
    sharp = tmp_path / "sharp"
    sharp.mkdir()
    write_image(sharp / "a.bmp", photo(9))
    reference = sharp if as_folder else sharp / "a.bmp"
    arguments = (photos / "a.png", "-o", tmp_path / "o", "--reference", reference)
    assert run(tiny, *arguments, "--json") == 0
    (image,) = document(capsys)["images"]
    restored = read_image(tmp_path / "o" / "a.png")
    for key, shown in (("before", photo(0)), ("after", restored)):
        error = np.mean((shown.astype(float) - photo(9)) ** 2)
        assert math.isclose(image[key]["psnr"], 10 * math.log10(255**2 / error), rel_tol=1e-12)
        assert -1 <= image[key]["ssim"] < 1
    assert run(tiny, *arguments) == 0
    table = capsys.readouterr().out
    assert f"{image['before']['psnr']:.2f} -> {image['after']['psnr']:.2f}" in table


def test_an_absurd_step_size_is_taken_back_and_said(
    tiny: Path, photos: Path, tmp_path: Path, capsys: Output
) -> None:
    assert run(tiny, photos / "a.png", "-o", tmp_path / "o", "--step-size", "1e20") == 0
    assert "a.png: not adapted, the loss is inf after 1 steps." in capsys.readouterr().out
    with Session(tiny) as session:
        expected = session.restore(photo(0))
    assert np.array_equal(read_image(tmp_path / "o" / "a.png"), expected)
    assert run(tiny, photos / "a.png", "-o", tmp_path / "o", "--step-size", "1e20", "--json") == 0
    (image,) = document(capsys)["images"]
    assert image["losses"][1] is None  # JSON has no infinity


def test_one_bad_image_does_not_stop_the_others(
    tiny: Path, photos: Path, tmp_path: Path, capsys: Output
) -> None:
    (photos / "b.bmp").write_bytes(b"")
    assert run(tiny, photos, "-o", tmp_path / "o") == 2
    assert names(tmp_path / "o") == ["[bold]d.png", "a.png", "c.png"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "1 of 4 images failed: " in error
    assert "b.bmp: the file is empty" in error


def test_memory_that_runs_out_is_one_images_failure(
    tiny: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapt = Session.adapt

    def too_large(self: Session, image: np.ndarray, *arguments: Any) -> Any:
        if image.shape[0] == 22:  # b.bmp
            raise MemoryError
        return adapt(self, image, *arguments)

    monkeypatch.setattr(Session, "adapt", too_large)
    assert run(tiny, photos, "-o", tmp_path / "o") == 2
    assert names(tmp_path / "o") == ["[bold]d.png", "a.png", "c.png"]
    captured = capsys.readouterr()
    assert "a.png" in captured.out
    assert f"1 of 4 images failed: {photos / 'b.bmp'}: out of memory" in captured.err


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interrupted_run_tells_what_is_done(
    tiny: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    restore = Session.restore

    def interrupted(self: Session, image: np.ndarray) -> np.ndarray:
        if image.shape[0] == 23:  # c.webp
            raise KeyboardInterrupt
        return restore(self, image)

    monkeypatch.setattr(Session, "restore", interrupted)
    options = ["--json"] if as_json else []
    assert run(tiny, photos, "-o", tmp_path / "o", "--steps", 0, *options) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    done = ["[bold]d.tif", "a.png", "b.bmp"]
    if as_json:
        images = json.loads(captured.out)["images"]
        assert [Path(image["input"]).name for image in images] == done
    assert [name in captured.out for name in (*done, "c.webp")] == [True, True, True, False]


def test_a_run_interrupted_before_its_first_image_prints_nothing(
    tiny: Path, photos: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Session, image: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "restore", interrupted)
    assert run(tiny, photos, "-o", tmp_path / "o", "--steps", 0) == 130
    assert capsys.readouterr().out == ""


def test_a_name_that_is_no_text_is_printed(
    tiny: Path, photos: Path, tmp_path: Path, capsys: Output
) -> None:
    odd = photos / os.fsdecode(b"\xff.png")
    odd.write_bytes((photos / "a.png").read_bytes())
    assert run(tiny, odd, "-o", tmp_path / "o") == 0
    assert "\N{REPLACEMENT CHARACTER}.png" in capsys.readouterr().out
    assert run(tiny, odd, "-o", tmp_path / "o", "--json") == 0


def test_info_tells_what_is_in_the_bundle(tiny: Path, capsys: Output) -> None:
    assert main(["info", str(tiny)]) == 0
    text = capsys.readouterr().out
    for expected in ("tiny: a residual", "90 in 4 tensors", "multiples of 4", "3 steps of sgd"):
        assert expected in text
    assert main(["info", str(tiny), "--json"]) == 0
    found = document(capsys)
    assert found["parameters"] == 90
    assert found["scopes"][1] == {
        "name": "bias",
        "pattern": "bias",
        "graph": "adapt.bias.onnx",
        "tensors": 2,
        "elements": 6,
    }
    assert found["file_bytes"]["loss.onnx"] == (tiny / "loss.onnx").stat().st_size


@pytest.mark.parametrize("option", ["--size=64x64", "--backend=cuda", "--memory-budget=3"])
def test_info_ignores_no_option_of_plans(tiny: Path, capsys: Output, option: str) -> None:
    assert main(["info", str(tiny), option]) == 2
    name = option.partition("=")[0]
    assert f"{name} is of --plan, which was not given." in capsys.readouterr().err
