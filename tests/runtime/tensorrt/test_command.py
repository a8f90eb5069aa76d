"""`edgeadapt build` as it is called, and `--backend tensorrt` where it cannot run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgeadapt.cli import main
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime import backends
from edgeadapt.runtime.cuda import pycuda_device
from edgeadapt.runtime.session import Session
from edgeadapt.runtime.tensorrt import command
from edgeadapt.runtime.tensorrt.engine_file import read_engine
from edgeadapt.runtime.tensorrt.library import Library
from support.fake_tensorrt import Fake
from support.host_device import HostDevice
from support.tiny_bundle import write_tiny_bundle

Output = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(write_tiny_bundle(tmp_path / "tiny.bundle"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[HostDevice]:
    """The devices that were opened instead of GPUs."""
    made: list[HostDevice] = []

    def opened() -> HostDevice:
        made.append(HostDevice())
        return made[-1]

    monkeypatch.setattr(pycuda_device, "open_device", opened)
    return made


def use(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    monkeypatch.setattr(command, "find_library", lambda wanted: library)


def test_an_engine_is_built_by_name_of_the_target(
    rtx: Library, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "tiny.engine"
    options = ["--size", "10x7", "--precision", "fp16", "--target", "sm_89", "-o", str(out)]
    assert main(["build", tiny, *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tiny.engine: built" in said
    assert "restore of tiny.bundle, 12x8, fp16, weights inputs" in said  # padded to 4
    assert f"tensorrt-rtx {rtx.version} for sm_89" in said
    header, plan = read_engine(out)
    assert (header.key.height, header.key.width, header.key.target) == (8, 12, "sm_89")
    assert len(plan) > 1000
    assert main(["build", tiny, *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kept"] is True
    assert document["key"]["files"] == dict(header.key.files)
    assert read_engine(out) == (header, plan)


def test_without_a_target_it_is_for_the_gpu_here(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: list[HostDevice]
) -> None:
    use(monkeypatch, Library("tensorrt", Fake()))
    out = tmp_path / "tiny.engine"
    assert main(["build", tiny, "--size", "12x8", "--graph", "adapt.all", "-o", str(out)]) == 0
    assert read_engine(out)[0].key.target == "sm_87"
    (opened,) = device
    with pytest.raises(BackendError, match="closed"):
        opened.free_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "orin-nano"], "builds for sm_75, .*not for sm_87.*on the device itself"),
        (["--target", "rtx"], "target must be an architecture such as sm_86, or one of orin-nano"),
        (["--target", "sm_86", "--graph", "all"], "graph must be one of restore, loss, adapt.all"),
        (["--target", "sm_86", "--graph", "adapt.x"], "no adaptation scope 'x'"),
        (["--target", "sm_86", "--graph", "loss", "--weights", "constant"], "must be inputs for"),
        (["--target", "sm_86", "--size", "0x8"], "is no WIDTHxHEIGHT"),
        (["--target", "sm_86", "-o", "no/such/folder/x"], "would be in a folder that is not ther"),
        (["--target", "sm_86", "-o", "."], "is a folder"),
    ],
)
def test_what_cannot_be_built_ends_in_one_line(
    rtx: Library, tiny: str, tmp_path: Path, capsys: Output, options: list[str], message: str
) -> None:
    out = tmp_path / "x.engine"
    assert main(["build", tiny, "--size", "12x8", "-o", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
    assert not out.exists()


def test_without_a_gpu_it_says_what_would_do(
    tiny: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> HostDevice:
        raise BackendError("PyCUDA is not installed.")

    monkeypatch.setattr(pycuda_device, "open_device", refused)
    for library, message in (
        (Library("tensorrt", Fake()), "builds on the GPU that runs the engine, which cannot be op"),
        (Library("tensorrt-rtx", Fake("rtx")), "there is no GPU to build for here: PyCUDA is not"),
    ):
        use(monkeypatch, library)
        assert main(["build", tiny, "--size", "12x8", "-o", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err


def test_the_backend_says_what_is_missing_and_auto_does_not_ask_for_it(
    tiny: str,
) -> None:
    if backends.has_gpu():
        pytest.skip("this machine has a GPU")
    assert "tensorrt" not in backends.AUTOMATIC
    assert set(backends.AUTOMATIC) < set(backends.BACKENDS)
    with pytest.raises(BackendError, match=r"PyCUDA|cuda-bindings|CUDA|driver|TensorRT"):
        Session(tiny, "tensorrt")


def test_an_engine_is_for_the_backend_tensorrt_alone(tiny: str) -> None:
    with pytest.raises(ConfigError, match="an engine is for the backend tensorrt, got native"):
        Session(tiny, "native", engine="x.engine")


def test_where_the_engine_cannot_go_is_said_before_it_is_built(
    tiny: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(name: str) -> Library:
        raise AssertionError("asked for a library before looking at the output")

    monkeypatch.setattr("edgeadapt.runtime.tensorrt.command.find_library", never)
    assert main(["build", tiny, "--size", "12x8", "-o", "no/such/folder/x"]) == 2
    assert "would be in a folder that is not there" in capsys.readouterr().err
