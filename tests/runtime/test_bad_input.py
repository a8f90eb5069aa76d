"""Every refusal of `edgeadapt run` is one line with a hint, status 2, and nothing on disk."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeadapt.bundle import MANIFEST
from edgeadapt.cli import main
from edgeadapt.image import read_image, write_image

Output = pytest.CaptureFixture[str]


def photo(height: int = 21, width: int = 34) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    """A folder with a bundle, a good image, and an output folder with a result of before."""
    shutil.copytree(tiny, tmp_path / "x.bundle")
    write_image(tmp_path / "good.png", photo())
    (tmp_path / "out").mkdir()
    write_image(tmp_path / "out" / "good.png", photo(3, 3))
    return tmp_path


def refused(place: Path, capsys: Output, *arguments: object, bundle: str = "x.bundle") -> str:
    """Check that it refuses in one line and leaves everything as it was; return the line."""
    before = everything(place)
    assert main(["run", str(place / bundle), *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("edgeadapt: error: ")
    assert captured.err.count("\n") == 1
    assert "Hint: " in captured.err
    assert "Traceback" not in captured.err
    assert everything(place) == before
    return captured.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is text\n", "not an image"),
        (encoded(Image.fromarray(photo()))[:900], "cannot be read as an image"),
    ],
    ids=["0 bytes", "text", "truncated"],
)
def test_a_file_that_is_no_image(place: Path, capsys: Output, content: bytes, message: str) -> None:
    (place / "bad.png").write_bytes(content)
    assert message in refused(place, capsys, place / "bad.png", "-o", place / "out")
    assert message in refused(place, capsys, place / "bad.png", "-o", place / "new")


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


CONVERTED = {
    "gray.png": encoded(Image.fromarray(photo()).convert("L")),
    "rgba.png": encoded(Image.fromarray(photo()).convert("RGBA")),
    "palette.png": encoded(Image.fromarray(photo()).convert("P")),
    "cmyk.jpg": encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG"),
    "16bit.png": encoded(Image.fromarray(photo()[:, :, 0].astype(np.uint16) * 257)),
    "rotated.jpg": encoded(Image.fromarray(photo()), "JPEG", exif=exif(6)),
    "1x1.png": encoded(Image.fromarray(photo(1, 1))),
    "20000x10.png": encoded(Image.fromarray(photo(10, 20000))),
}


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_an_unusual_image_is_converted_and_restored(place: Path, name: str) -> None:
    (place / name).write_bytes(CONVERTED[name])
    assert main(["run", str(place / "x.bundle"), str(place / name), "-o", str(place / "new")]) == 0
    result = read_image((place / "new" / name).with_suffix(".png"))
    assert result.shape == read_image(place / name).shape
    if name == "rotated.jpg":
        assert result.shape == (34, 21, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "-o", "out"], "absent.png: there is no such file"),
        (["*.jpg", "-o", "out"], "matches no file"),
        (["empty", "-o", "out"], "no images in this folder"),
        (["good.png", "-o", "good.png"], "would overwrite an image that is read"),
        (["good.png", "-o", "."], "would overwrite an image that is read"),
        (["good.png", "-o", "link"], "would overwrite an image that is read"),
        (["good.png", "-o", "x.bundle/manifest.json/"], "manifest.json is not a folder"),
        (["good.png", "-o", "good.png/out"], "good.png is not a folder"),
        (["good.png", "more/good.bmp", "-o", "out"], "is the output of both"),
        (["more", "-o", "new", "--keep-steps"], "is the output of both"),
        (["good.png", "more/good.bmp", "-o", "new.png/"], "is the output of both"),
        (["good.png", "-o", "out/x.gif"], "out/x.gif: no image format has the suffix '.gif'"),
        (["good.png", "-o", "v1.2"], "or end the name of a folder with a slash: v1.2/"),
        (["good.png", "more/good.bmp", "-o", "new.png"], "new.png: is a file's name, for 2 images"),
        (["good.png", "-o", "out", "--scope", "none"], "no adaptation scope 'none'"),
        (["good.png", "-o", "out", "--step-size", "nan"], "step_size must be a finite number"),
        (["good.png", "-o", "out", "--reference", "absent"], "--reference must be a file or"),
        (["good.png", "-o", "out", "--reference", "empty"], "0 images are called 'good'"),
        (
            ["good.png", "-o", "out", "--reference", "tiny.png"],
            "good.png: the reference is 2x2, its",
        ),
        (["good.png", "-o", "more", "--reference", "ref"], "would overwrite an image that is read"),
        (["good.png", "-o", "out", "--threads", "0"], "Invalid value for '--threads'"),
        (["good.png", "-o", "out", "--backend", "tpu"], "Invalid value for '--backend'"),
        (["good.png", "-o", "out", "--memory-budget", "0"], "'0' is no number of MiB above 0"),
        (["good.png", "-o", "out", "--memory-budget", "all"], "'all' is no number of MiB above 0"),
    ],
)
def test_arguments_that_cannot_be(
    place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(place)
    (place / "empty").mkdir()
    (place / "more").mkdir()
    (place / "link").symlink_to(place)
    (place / "ref").mkdir()
    write_image(place / "more" / "good.bmp", photo())
    write_image(place / "more" / "good.step1.bmp", photo())
    write_image(place / "tiny.png", photo(2, 2))
    write_image(place / "more" / "good.png", photo())
    (place / "ref" / "good.png").symlink_to(place / "more" / "good.png")
    if arguments[0] == "more":
        (place / "more" / "good.png").unlink()
    assert message in refused(place, capsys, *arguments)


def test_a_folder_without_permission(
    place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert "no permission" in refused(place, capsys, place / "good.png", "-o", place / "out")


def test_a_full_disk(place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    line = refused(place, capsys, place / "good.png", "-o", place / "out")
    assert "cannot be written ([Errno 28] No space left on device)" in line


def test_a_bundle_that_does_not_hold(place: Path, capsys: Output) -> None:
    arguments = (place / "good.png", "-o", place / "out")
    assert "not a bundle" in refused(place, capsys, *arguments, bundle="absent.bundle")
    assert "not a bundle" in refused(place, capsys, *arguments, bundle="good.png")
    loss = (place / "x.bundle" / "loss.onnx").read_bytes()
    (place / "x.bundle" / "loss.onnx").write_bytes(loss[:-1] + b"!")
    assert "its bytes are not the ones" in refused(place, capsys, *arguments)
    (place / "x.bundle" / "loss.onnx").unlink()
    assert "loss.onnx is missing" in refused(place, capsys, *arguments)
    manifest = place / "x.bundle" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    assert "newer than this edgeadapt" in refused(place, capsys, *arguments)


def test_scikit_image_is_asked_for_before_the_work(
    place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    arguments = (place / "good.png", "-o", place / "out", "--reference", place / "good.png")
    assert "pip install 'edgeadapt[demo]'" in refused(place, capsys, *arguments)
