"""What an export replaces, and what it leaves as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from edgeadapt.bundle import Adaptation, Model, open_bundle
from edgeadapt.cli import main
from edgeadapt.errors import BundleError, ExportError
from edgeadapt.export import exporter
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.manifest import write_manifest
from support.exporting import Around, export
from support.tiny_bundle import write_tiny_bundle

Files = dict[str, bytes]
SOUND = Adaptation(2, "sgd", 0.01)


def content(folder: Path) -> Files:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def listing(*names: str) -> str:
    return json.dumps({"format_version": 1, "files": dict.fromkeys(names, "")})


NO_BUNDLES: dict[str, dict[str, str]] = {
    "an extension of a browser": {"manifest.json": '{"manifest_version": 3}', "a.js": "x"},
    "only its manifest": {"manifest.json": '{"name": "mine"}'},
    "no JSON": {"manifest.json": "{", "thesis.txt": "x"},
    "a list": {"manifest.json": "[1]", "thesis.txt": "x"},
    "no version": {"manifest.json": '{"files": {"weights.safetensors": ""}}'},
    "files as a number": {"manifest.json": '{"format_version": 1, "files": 3}'},
    "files of something else": {"manifest.json": listing("a.js"), "a.js": "x"},
    "a folder for a manifest": {"manifest.json/x": "x"},
}


@pytest.mark.parametrize("files", NO_BUNDLES.values(), ids=NO_BUNDLES.keys())
def test_a_folder_with_a_manifest_of_something_else_stays(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "trace", None)  # refused before the work
    write(tmp_path / "mine", files)
    before = content(tmp_path / "mine")
    with pytest.raises(ExportError, match="mine: exists and is not a bundle"):
        export(Around(torch.tanh), tmp_path / "mine")
    assert content(tmp_path / "mine") == before


@pytest.mark.parametrize("name", ["thesis.txt", "photos/me.png", ".notes", "loss.onnx/x"])
def test_what_lies_beside_a_bundle_stays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = write_tiny_bundle(tmp_path / "x.bundle")
    if name.startswith("loss.onnx"):
        (place / "loss.onnx").unlink()
    write(place, {name: "mine"})
    before = content(place)
    monkeypatch.setattr(exporter, "trace", None)
    with pytest.raises(ExportError, match=f"holds '{name.partition('/')[0]}'"):
        export(Around(torch.tanh), place)
    assert content(place) == before


@pytest.mark.parametrize("damage", ["a file less", "a changed byte", "a newer version"])
def test_a_bundle_is_replaced_whatever_its_state(damage: str, tmp_path: Path):
    place = write_tiny_bundle(tmp_path / "x.bundle")
    if damage == "a file less":
        (place / "loss.onnx").unlink()
    elif damage == "a changed byte":
        (place / "loss.onnx").write_bytes(b"x")
    else:
        manifest = json.loads((place / "manifest.json").read_text())
        (place / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(BundleError):
        open_bundle(place)
    assert export(Around(torch.tanh), place).path == place
    assert open_bundle(place).manifest.model.name == "small"
    assert [item.name for item in tmp_path.iterdir()] == ["x.bundle"]


ADAPTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"step_size": math.nan}, "finite number, got nan"),
    "infinite": ({"step_size": math.inf}, "finite number, got inf"),
    "1e31": ({"step_size": 1e31}, r"finite number, got 1e\+31"),
    "negative": ({"step_size": -1.0}, "a step size must be at least 0, got -1"),
    "of a parameter": ({"step_sizes": {"first.bias": math.nan}}, "finite number, got nan"),
    "of no parameter": ({"step_sizes": {"nose": 0.1}}, "unknown parameter 'nose'"),
    "steps": ({"steps": -1}, "steps must be from 0 to 10000, got -1"),
    "many steps": ({"steps": 10_001}, "steps must be from 0 to 10000, got 10001"),
    "half a step": ({"steps": 1.5}, "expected int, got 1.5"),
    "optimizer": ({"optimizer": "lion"}, "sgd or adam, got 'lion'"),
}


@pytest.mark.parametrize(("change", "message"), ADAPTATIONS.values(), ids=ADAPTATIONS.keys())
def test_an_adaptation_that_no_reader_takes_is_refused_before_the_work(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "trace", None)
    place = write_tiny_bundle(tmp_path / "x.bundle")
    before = content(place)
    options = ExportOptions(Model("x", "", "nowhere:x", {}), replace(SOUND, **change))
    with pytest.raises(ExportError, match=message):
        export_bundle(Around(torch.tanh), place, options)
    assert content(place) == before


def test_a_vast_multiple_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "trace", None)
    network = Around(torch.tanh)
    network.size_multiple = 4097
    with pytest.raises(ExportError, match="size_multiple must be from 1 to 4096, got 4097"):
        export(network, tmp_path / "x.bundle")


@pytest.mark.parametrize("size", ["nan", "1e31", "inf"])
def test_a_step_size_on_the_command_line(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["export", "edgeadapt.training.network:build", "--option", "preset=nano"]
    assert main([*arguments, "--step-size", size, "-o", str(tmp_path / "x.bundle")]) == 2
    assert "expected a finite number" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def spoil(plain: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """A cut whose graphs ONNX takes, and a reader of bundles does not."""

    def cut(*arguments: Any) -> onnx.ModelProto:
        model = plain(*arguments)
        model.graph.output[0].name = "spoiled"
        return model

    return cut


def test_an_export_that_does_not_read_back_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = write_tiny_bundle(tmp_path / "x.bundle")
    before = content(place)
    monkeypatch.setattr(exporter, "cut", spoil(exporter.cut))
    with pytest.raises(ExportError, match=rf"cannot be read back: {place / 'restore.onnx'}: outp"):
        export(Around(torch.tanh), place)
    assert content(place) == before
    assert [item.name for item in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.parametrize("value", [math.nan, {1, 2}])
def test_a_manifest_that_is_no_json_is_not_written(value: Any, tmp_path: Path):
    manifest = open_bundle(write_tiny_bundle(tmp_path / "x.bundle")).manifest
    model = replace(manifest.model, options={"slope": value})
    (tmp_path / "y").mkdir()
    with pytest.raises(BundleError, match="cannot be written as JSON"):
        write_manifest(tmp_path / "y", replace(manifest, model=model))
    assert list((tmp_path / "y").iterdir()) == []
