"""`edgeadapt check` of a network with buffers, which a bundle holds in its graphs only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgeadapt.cli import main

Output = pytest.CaptureFixture[str]
NETWORK = """
import torch
from torch import nn
class Normalised(nn.Module):
    size_multiple = 2
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.register_buffer("part", torch.tensor(0.5), persistent=False)
    def restore(self, image):
        return image + self.part * self.last(torch.tanh(self.norm(self.first(image))))
    def adaptation_loss(self, image):
        return (self.restore(image) - image).square().mean()[None]
    def parameter_groups(self):
        return {"shared": [name for name, _ in self.named_parameters()]}
"""


def write_state(path: Path, network: Path, seed: int) -> None:
    """Weights that depend on nothing, statistics of a normalisation that depend on ``seed``."""
    code: dict[str, object] = {"__name__": "normalised"}
    exec(compile(network.read_text(), str(network), "exec"), code)
    made = code["Normalised"]
    assert callable(made)
    torch.manual_seed(0)
    state = made().state_dict()
    generator = torch.Generator().manual_seed(seed)
    state["norm.running_mean"].normal_(generator=generator)
    state["norm.running_var"].uniform_(0.5, 2.0, generator=generator)
    torch.save(state, path)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_buffers_are_compared_with_those_of_a_checkpoint(tmp_path: Path, capsys: Output):
    file, bundle = tmp_path / "normalised.py", tmp_path / "x.bundle"
    factory = f"{file}:Normalised"
    file.write_text(NETWORK)
    write_state(tmp_path / "state.pt", file, seed=1)
    write_state(tmp_path / "other.pt", file, seed=2)
    assert run("export", factory, "--weights", tmp_path / "state.pt", "-o", bundle) == 0
    check = ("check", bundle, "--model", factory, "--steps", 1)
    capsys.readouterr()
    # A fresh network has other statistics: that the bundle is wrong does not follow.
    assert run(*check) == 0
    said = capsys.readouterr().out
    assert "Not compared with PyTorch: the network has buffers (norm.num_batches_tracked" in said
    assert "needs --checkpoint" in said
    assert run(*check, "--checkpoint", tmp_path / "state.pt") == 0
    assert "within bounds." in capsys.readouterr().out
    assert run(*check, "--checkpoint", tmp_path / "other.pt", "--json") == 1
    rows = json.loads(capsys.readouterr().out)["findings"]
    assert not next(row["ok"] for row in rows if row["what"] == "restore: image")
