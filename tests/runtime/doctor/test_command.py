from __future__ import annotations

import json
import re

import pytest

from edgeadapt.cli import REFUSED, main
from edgeadapt.runtime.doctor import checks, command
from edgeadapt.runtime.doctor.findings import STATES
from support.gpu_code import library_for
from support.recorded_machine import bare, orin
from support.tree import ROOT


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Let the command see a recorded machine."""

    def use(make):
        machine = make(tmp_path)
        monkeypatch.setattr(command, "System", lambda cache: machine.machine_for().system)
        return machine

    return use


def test_json_has_the_documented_fields(recorded, tiny, capsys):
    recorded(orin)
    assert main(["doctor", str(tiny), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"schema", "device", "would_use", "exit_code", "findings", "libraries",
                             "seconds"}  # fmt: skip
    assert document["schema"] == 1
    assert document["device"] == {
        "name": "NVIDIA Jetson Orin Nano Developer Kit Super",
        "architecture": "sm_87",
        "present": True,
    }
    assert document["would_use"] == "cuda"
    for finding in document["findings"]:
        assert set(finding) == {"check", "state", "found", "fix"}
        assert finding["state"] in STATES
    kinds = {"kind", "path", "sass", "ptx", "ptx_version", "complete"}
    assert all(set(row) == kinds for row in document["libraries"])
    assert {row["kind"] for row in document["libraries"]} == {"cuDNN", "TensorRT", "edgeadapt"}
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    for field in (*document, *document["device"], *document["findings"][0], *kinds):
        assert f"`{field}`" in page, field


# Checks whose findings stand under another one's name.
SHOWN_AS = {
    "bindings": "tensorrt",
    "choice": "backend",
    "code": "code of ...",
    "device files": "driver",
    "providers": "onnxruntime",
    "releases": "jetpack",
    "rtx": "tensorrt",
}


def test_every_check_is_documented():
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| ([\w, .]+?) \|", page, re.M)
    named = {name for text in names for name in text.split(", ")}
    for check in checks.CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        assert SHOWN_AS.get(name, name) in named


def test_the_table_shows_fixes_and_the_exit_code_says_that_there_is_a_problem(recorded, capsys):
    machine = recorded(orin)
    machine.file("site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so",
                 library_for("90a"))  # fmt: skip
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "problem  code of ONNX Runtime" in shown
    assert "-> pip uninstall onnxruntime-gpu" in shown
    assert "1 problem; judged by NVIDIA Jetson Orin Nano" in shown


def test_without_a_gpu_it_says_what_would_be_used(recorded, capsys):
    recorded(bare)
    assert main(["doctor", "nano"]) == 0
    shown = capsys.readouterr().out
    assert "auto takes native" in shown
    assert "there is no GPU to judge by" in shown


def test_an_unknown_device_is_refused(capsys):
    assert main(["doctor", "--device", "xavier"]) == REFUSED
    assert "orin-nano" in capsys.readouterr().err


def test_this_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path))
    status = main(["doctor", "nano", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert status == document["exit_code"]
    assert document["would_use"] in ("native", "cuda")
    assert not [one for one in document["findings"] if "could not be looked at" in one["found"]]
