"""What a checkpoint keeps, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from edgeadapt.errors import CheckpointError
from edgeadapt.training import checkpoint as module
from edgeadapt.training.checkpoint import (
    Checkpoint,
    LearnedAdaptation,
    load_checkpoint,
    load_network,
    save_checkpoint,
)
from edgeadapt.training.network import DeblurNet
from support.tiny_training import NETWORK


def example(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    network = DeblurNet(NETWORK)
    name = next(iter(dict(network.named_parameters())))
    adaptation = LearnedAdaptation(3, "adam", 1e-3, {name: 2e-3})
    return Checkpoint(
        kind="meta",
        network=asdict(NETWORK),
        weights=network.state_dict(),
        adaptation=asdict(adaptation),
        config={"data": {"crop": 16}},
        iteration=7,
        best_psnr=-float("inf"),
        stage={"optimizer": {"state": {0: torch.ones(2)}}},
    )


def test_network_and_adaptation_come_back(tmp_path: Path) -> None:
    saved = example()
    save_checkpoint(tmp_path / "a.pt", saved)
    network, adaptation = load_network(tmp_path / "a.pt")
    assert network.config == NETWORK
    assert adaptation == LearnedAdaptation(**saved.adaptation)
    for name, value in saved.weights.items():
        assert torch.equal(network.state_dict()[name], value)
    assert load_checkpoint(tmp_path / "a.pt").iteration == 7


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, example(1))
    before = path.read_bytes()

    def half_written(_: object, file: Path) -> None:
        file.write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(module.torch, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, example(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "touched"),))

    torch.save({"format_version": 1, "weights": Attack()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError, match=r"b.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken zip"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a.pt: not a readable checkpoint.*best.pt"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", example())
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_other_contents_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match=r"a.pt: no such file"):
        load_checkpoint(path)
    torch.save({"model": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint that `edgeadapt train` wrote"):
        load_checkpoint(path)
    save_checkpoint(path, replace(example(), format_version=99))
    with pytest.raises(CheckpointError, match=r"format 99, this edgeadapt reads up to 1"):
        load_checkpoint(path)
    torch.save({"format_version": 1, "kind": "joint"}, path)
    with pytest.raises(CheckpointError, match="field 'adaptation' is missing or unknown"):
        load_checkpoint(path)
    save_checkpoint(path, replace(example(), weights={"x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="its weights do not fit its network"):
        load_network(path)
    save_checkpoint(path, replace(example(), adaptation={"K": 3}))
    with pytest.raises(CheckpointError, match="field 'adaptation' is damaged"):
        load_network(path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "missing" / "a.pt", example())
