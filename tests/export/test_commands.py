"""`edgeadapt export` and `edgeadapt check` as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeadapt.bundle import open_bundle
from edgeadapt.cli import main
from edgeadapt.export import exporter, trust
from edgeadapt.testing import photo
from edgeadapt.training.checkpoint import Checkpoint, save_checkpoint
from edgeadapt.training.network import DeblurNet
from support.tiny_training import NETWORK
from support.tree import ROOT

Output = pytest.CaptureFixture[str]
EXAMPLE = f"{ROOT / 'examples' / 'plain_autoencoder.py'}:PlainAutoencoder"
FACTORY = "edgeadapt.training.network:build"
STEP_SIZES = {"scales.0.primary.head.bias": 0.5, "scales.0.primary.head.weight": 0.25}
TOUCHED = """
from pathlib import Path
Path({marker!r}).touch()
from edgeadapt.training.network import build
def make(**options):
    return build(widths=[4, 6], n_scales=1, blocks=1, share_scales=True, **options)
def number():
    return 7
def broken():
    raise ZeroDivisionError("in the factory")
"""


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def error(capsys: Output) -> str:
    """The one line on stderr."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("edgeadapt: error: ")
    return line


def checkpoint(path: Path, seed: int = 0) -> DeblurNet:
    """Write a checkpoint as a meta-training run does, and return its network."""
    torch.manual_seed(seed)
    network = DeblurNet(NETWORK)
    adaptation = {"steps": 3, "optimizer": "sgd", "step_size": 0.01, "step_sizes": STEP_SIZES}
    save_checkpoint(
        path,
        Checkpoint(
            kind="meta",
            network=vars(NETWORK),
            weights=network.state_dict(),
            adaptation=adaptation,
            config={},
            iteration=4,
            best_psnr=20.0,
            stage={},
        ),
    )
    return network


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the bundle exported from it."""
    folder = tmp_path_factory.mktemp("mine")
    checkpoint(folder / "best.pt")
    assert run("export", folder / "best.pt", "-o", folder / "x.bundle") == 0
    return folder / "best.pt", folder / "x.bundle"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the example network."""
    path = tmp_path_factory.mktemp("plain") / "plain.bundle"
    scope = "gates=^gate"
    options = ("--option", "width=6", "--scope", scope, "--step-size", "1e-2", "--steps", 2)
    assert run("export", EXAMPLE, "-o", path, *options) == 0
    return path


def test_a_checkpoint_of_training_becomes_a_bundle(trained: tuple[Path, Path]):
    path, bundle = trained
    manifest = open_bundle(bundle).manifest
    assert manifest.model.factory == FACTORY
    assert manifest.model.name == path.parent.name
    assert "2 scales, widths 4/6" in manifest.model.description
    assert manifest.model.options["share_scales"] is True
    assert manifest.adaptation.steps == 3
    assert manifest.adaptation.optimizer == "sgd"
    assert manifest.adaptation.step_size == 0.01
    assert manifest.adaptation.step_sizes == STEP_SIZES
    assert [scope.name for scope in manifest.scopes] == ["all", "heads", "bias"]


def test_options_change_how_a_checkpoint_adapts(trained: tuple[Path, Path], tmp_path: Path):
    options = ("--steps", 7, "--step-size", 0.125, "--optimizer", "adam", "--name", "street")
    assert run("export", trained[0], "-o", tmp_path / "y.bundle", *options) == 0
    manifest = open_bundle(tmp_path / "y.bundle").manifest
    assert manifest.adaptation.steps == 7
    assert manifest.adaptation.optimizer == "adam"
    assert manifest.adaptation.step_size == 0.125
    assert manifest.adaptation.step_sizes == {}, "one step size for all parameters was asked for"
    assert manifest.model.name == "street"


def test_a_factor_scales_every_step_size(trained: tuple[Path, Path], tmp_path: Path):
    assert run("export", trained[0], "-o", tmp_path / "y.bundle", "--factor", 4) == 0
    found = open_bundle(tmp_path / "y.bundle").manifest.adaptation
    assert found.step_size == 0.04
    assert found.step_sizes == {name: 4 * size for name, size in STEP_SIZES.items()}


def test_export_says_what_it_wrote(trained: tuple[Path, Path], tmp_path: Path, capsys: Output):
    assert run("export", trained[0], "-o", tmp_path / "y.bundle", "--scope", "up=up_1") == 0
    line = capsys.readouterr().out
    size = sum(file.stat().st_size for file in (tmp_path / "y.bundle").iterdir())
    assert line.startswith(f"{tmp_path / 'y.bundle'}: {size / 1e6:.2f} MB, scopes all (")
    assert "up (4 tensors)" in line


def test_a_sound_bundle_passes_the_check(trained: tuple[Path, Path], capsys: Output):
    path, bundle = trained
    assert run("check", bundle, "--checkpoint", path, "--steps", 1) == 0
    text = capsys.readouterr().out
    assert "files have their hashes, every graph opens." in text
    assert f"The weights are those of {path}, bit for bit." in text
    assert "within bounds." in text
    assert "1 steps of scope all: losses" in text
    assert "FAILED" not in text


def test_the_check_as_json(trained: tuple[Path, Path], capsys: Output):
    assert run("check", trained[1], "--json", "--steps", 0) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["messages"]) == 1
    found = {row["what"]: row for row in document["findings"]}
    assert found["restore: image"]["ok"] is True
    assert 0 <= found["restore: image"]["value"] <= found["restore: image"]["bound"] == 1e-5


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "copied.bundle"))


def test_a_number_out_of_bounds_is_exit_code_1(copied: Path, capsys: Output):
    edit_manifest(copied, lambda manifest: manifest["model"]["options"].update(slope=0.2))
    assert run("check", copied, "--steps", 1) == 1
    text = capsys.readouterr().out
    assert "FAILED" in text
    assert "out of bounds." in text
    assert run("check", copied, "--json", "--steps", 1) == 1
    rows = json.loads(capsys.readouterr().out)["findings"]
    assert not all(row["ok"] for row in rows)


def test_a_damaged_bundle_is_exit_code_2(copied: Path, capsys: Output):
    content = bytearray((copied / "loss.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "loss.onnx").write_bytes(content)
    assert run("check", copied) == 2
    assert "loss.onnx" in error(capsys)


def test_a_factory_that_no_longer_fits_is_exit_code_2(copied: Path, capsys: Output):
    edit_manifest(copied, lambda manifest: manifest["model"]["options"].update(widths=[]))
    assert run("check", copied) == 2
    assert "widths must be two or more" in error(capsys)


def test_another_checkpoint_is_named(trained: tuple[Path, Path], tmp_path: Path, capsys: Output):
    other = tmp_path / "other.pt"
    checkpoint(other, seed=1)
    assert run("check", trained[1], "--checkpoint", other) == 2
    line = error(capsys)
    assert f"parameter 'scales.0.auxiliary.head.weight' is not the one in {other}." in line
    assert "export that checkpoint again" in line


def test_a_checkpoint_of_another_shape_is_named(
    trained: tuple[Path, Path], tmp_path: Path, capsys: Output
):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert run("check", trained[1], "--checkpoint", tmp_path / "other.pt") == 2
    assert f"{tmp_path / 'other.pt'}: these weights are not this network's" in error(capsys)


def test_a_state_dict_is_compared_too(trained: tuple[Path, Path], tmp_path: Path, capsys: Output):
    state = checkpoint(tmp_path / "same.pt").state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert run("check", trained[1], "--checkpoint", tmp_path / "state.pt", "--steps", 0) == 0
    assert "bit for bit" in capsys.readouterr().out


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A bundle of a factory that is not edgeadapt's, its file, and what running it leaves."""
    marker, file = tmp_path / "was_run", tmp_path / "mine.py"
    file.write_text(TOUCHED.format(marker=str(marker)))
    bundle = tmp_path / "foreign.bundle"
    assert run("export", f"{file}:make", "-o", bundle) == 0
    marker.unlink()
    return bundle, file, marker


def test_code_that_a_bundle_names_is_not_run(foreign: tuple[Path, Path, Path], capsys: Output):
    # A bundle may come from anyone.
    bundle, file, marker = foreign
    capsys.readouterr()
    assert run("check", bundle) == 0
    text = capsys.readouterr().out
    assert (
        f"Not compared with PyTorch: the network's factory is {file}:make; say --model {file}:make"
        in text
    )
    assert not marker.exists()
    assert run("check", bundle, "--checkpoint", file) == 2
    assert "was not compared" in error(capsys)
    assert not marker.exists()
    assert run("check", bundle, "--model", f"{file}:make", "--steps", 1) == 0
    assert "within bounds." in capsys.readouterr().out
    assert marker.exists()


def test_without_torch_hashes_and_graphs_are_checked(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Output
):
    monkeypatch.setattr(trust, "find_spec", lambda name: None)
    assert run("check", trained[1]) == 0
    text = capsys.readouterr().out
    assert "every graph opens." in text
    assert "Not compared with PyTorch: PyTorch is not installed." in text


def sources(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Arguments of export that cannot work -> what the error says."""
    mine = folder / "mine.py"
    mine.write_text(TOUCHED.format(marker=str(folder / "was_run")))
    (folder / "wrong.py").write_text("def make(:\n")
    (folder / "text.pt").write_text("not a checkpoint")
    checkpoint(folder / "best.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"weight": torch.zeros(3)}, folder / "small.pt")
    return {
        "no such file": ([folder / "nothing.pt"], "no such checkpoint"),
        "no checkpoint": ([folder / "text.pt"], "not a readable checkpoint"),
        "options of a checkpoint": (
            [folder / "best.pt", "--option", "slope=0.3"],
            "a checkpoint has its own options",
        ),
        "weights of a checkpoint": (
            [folder / "best.pt", "--weights", folder / "best.pt"],
            "a checkpoint has its own options and weights",
        ),
        "no such module": (["nowhere.at_all:make"], "cannot be imported"),
        "no such factory file": ([f"{folder / 'nothing.py'}:make"], "no file"),
        "no such callable": ([f"{mine}:made"], "has no 'made'"),
        "a factory with a wrong syntax": ([f"{folder / 'wrong.py'}:make"], "cannot be imported"),
        "a factory that fails": ([f"{mine}:broken"], "ZeroDivisionError: in the factory"),
        "a factory of no network": ([f"{mine}:number"], "must return a torch.nn.Module, got int"),
        "a wrong option": ([f"{mine}:make", "--option", "slope=7"], "slope must be in [0, 1)"),
        "an unknown option": ([f"{mine}:make", "--option", "x=1"], "unknown option 'x'"),
        "an option without a value": ([f"{mine}:make", "--option", "slope"], "must be NAME=VALUE"),
        "a scope without a pattern": ([f"{mine}:make", "--scope", "encoder"], "must be NAME=VALUE"),
        "a scope of nothing": ([f"{mine}:make", "--scope", "mine=nothing"], "matches 'nothing'"),
        "weights that do not fit": (
            [f"{mine}:make", "--weights", folder / "small.pt"],
            "these weights are not this network's",
        ),
        "weights that are none": (
            [f"{mine}:make", "--weights", folder / "list.pt"],
            "not a state dict",
        ),
        "a file that holds no weights": (
            [f"{mine}:make", "--weights", folder / "text.pt"],
            "not a file of weights",
        ),
        "no step": ([f"{mine}:make", "--step-size", "0"], "--step-size"),
        "two ways": (
            [f"{mine}:make", "--step-size", "1e-3", "--factor", "2"],
            "--factor 2 scales step sizes, --step-size replaces all of them",
        ),
        "no auxiliary branch": ([f"{mine}:make", "--option", "aux_branch=false"], "aux_branch"),
    }


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, capsys: Output):
    for label, (arguments, message) in sources(tmp_path).items():
        capsys.readouterr()
        assert run("export", *arguments, "-o", tmp_path / "y.bundle") == 2, label
        assert message in error(capsys), label
        assert not (tmp_path / "y.bundle").exists(), label


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    trained: tuple[Path, Path], tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "trace", None)
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "y.bundle", tmp_path / "no" / "y.bundle"):
        assert run("export", trained[0], "-o", output) == 2
        assert str(tmp_path) in error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_network_of_ones_own_goes_the_same_way(example: Path, tmp_path: Path, capsys: Output):
    manifest = open_bundle(example).manifest
    assert manifest.model.factory == EXAMPLE
    assert manifest.model.options == {"width": 6}
    assert manifest.model.description.startswith("Encoder-decoder")
    gates = next(scope for scope in manifest.scopes if scope.name == "gates")
    assert gates.parameters == ("gate.bias", "gate.weight")
    assert run("check", example, "--model", EXAMPLE) == 0
    Image.fromarray(photo(5, 27, 38)).save(tmp_path / "photo.png")
    arguments = ("run", example, tmp_path / "photo.png", "-o", tmp_path / "out", "--json")
    capsys.readouterr()
    assert run(*arguments, "--scope", "all") == 0
    document = json.loads(capsys.readouterr().out)
    losses = json.dumps(document)
    assert "losses" in losses
    with Image.open(tmp_path / "out" / "photo.png") as result:
        assert result.size == (38, 27)
        adapted = np.asarray(result)
    assert run(*arguments, "--scope", "gates") == 0
    with Image.open(tmp_path / "out" / "photo.png") as result:
        assert not np.array_equal(np.asarray(result), adapted)


def test_the_example_is_short():
    text = (ROOT / "examples" / "plain_autoencoder.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60


def test_weights_of_a_factory_are_those_of_the_file(tmp_path: Path):
    torch.manual_seed(5)
    network = DeblurNet(NETWORK)
    torch.save(network.state_dict(), tmp_path / "state.pt")
    options = [f"{key}={json.dumps(value)}" for key, value in vars(NETWORK).items()]
    arguments = [argument for option in options for argument in ("--option", option)]
    output = tmp_path / "y.bundle"
    assert run("export", FACTORY, *arguments, "--weights", tmp_path / "state.pt", "-o", output) == 0
    assert run("check", output, "--checkpoint", tmp_path / "state.pt", "--steps", 0) == 0
    flat = open_bundle(output).weights()
    expected = [network.get_parameter(row.name) for row in open_bundle(output).manifest.parameters]
    joined = torch.cat([value.detach().reshape(-1) for value in expected]).numpy()
    assert flat.tobytes() == joined.tobytes()
