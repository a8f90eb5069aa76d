"""A bundle may come from anyone: what its manifest names is not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.bundle import Model, open_bundle
from edgeadapt.cli import main
from edgeadapt.export.trust import DEBLUR_FACTORY, trusted_factory
from support.tiny_bundle import write_tiny_bundle

Output = pytest.CaptureFixture[str]
ByCommand = dict[str, Callable[[Path], list[str]]]

COMMANDS: ByCommand = {
    "check": lambda bundle: ["check", str(bundle)],
    "bench peers": lambda bundle: [
        *("bench", "peers", str(bundle), "--size", "4x4"),
        *("--repeats", "1", "--threads", "1", "--no-memory"),
    ],
}


def write_hostile(folder: Path, factory: str, options: dict[str, Any]) -> Path:
    bundle = write_tiny_bundle(folder)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"].update(factory=factory, options=options)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("source", ["edgeadapt.export.source:build", "os:system"])
def test_a_factory_that_calls_a_shell_is_not_called(
    command: str, source: str, tmp_path: Path, capsys: Output
):
    marker = tmp_path / "was_run"
    options: dict[str, Any] = {"command": f"touch {marker}"}
    if source != "os:system":
        options = {"factory": "os:system", "options": options}
    bundle = write_hostile(tmp_path / "hostile.bundle", source, options)
    assert open_bundle(bundle).manifest.model.factory == source, "the bundle itself is sound"
    assert main(COMMANDS[command](bundle)) == 0
    assert not marker.exists()
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert f"the network's factory is {source}" in said


@pytest.mark.parametrize(
    "factory",
    [
        "edgeadapt.training.network:DeblurNet",
        "edgeadapt.training.network:build.__globals__",
        "edgeadapt.training.network:buil",
        "edgeadapt.training.network:build ",
        "edgeadapt.py:build",
        "",
    ],
)
def test_no_other_factory_is_trusted(factory: str):
    found, reason = trusted_factory(Model("x", "", factory, {}), None)
    assert found is None
    assert f"say --model {factory} if you trust that code" in reason
    assert trusted_factory(Model("x", "", factory, {}), "mine.py:make") == ("mine.py:make", "")


def test_the_project_s_own_factory_is_trusted():
    assert trusted_factory(Model("x", "", DEBLUR_FACTORY, {}), None) == (DEBLUR_FACTORY, "")
