"""What is built, kept and refused, with fakes of both libraries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.cuda.devices import device_names
from edgeadapt.runtime.tensorrt import cache
from edgeadapt.runtime.tensorrt.build import (
    Request,
    build_engine,
    engine_key,
    read_for,
)
from edgeadapt.runtime.tensorrt.engine_file import write_engine
from edgeadapt.runtime.tensorrt.library import Library, find_library
from edgeadapt.runtime.tensorrt.target import check_target, parse_target
from support.fake_tensorrt import Fake
from support.host_device import ORIN, HostDevice
from support.tiny_bundle import write_tiny_bundle

SIZE = (8, 12)
HERE = ORIN.capability


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return open_bundle(write_tiny_bundle(tmp_path / "tiny.bundle"))


def settings_of(engine_plan: bytes) -> bytes:
    return engine_plan.split(b"\0")[0]


@pytest.mark.parametrize("kind", ["10", "11"])
def test_tensorrt_builds_for_the_gpu_in_the_machine(tiny: Bundle, kind: str) -> None:
    fake, device = Fake(kind), HostDevice()
    library = Library("tensorrt", fake)
    engine = build_engine(tiny, Request(SIZE), library, HERE, device)
    assert fake.complaints == []  # of a network that is not strongly typed
    assert settings_of(engine.plan) == b'{"refit": false, "tf32": false, "target": ""}'
    key = engine.header.key
    assert (key.library, key.target, key.device) == ("tensorrt", "sm_87", ORIN.name)
    assert engine.header.layers == 2


def test_tensorrt_rtx_builds_for_what_is_named(tiny: Bundle) -> None:
    library = Library("tensorrt-rtx", Fake("rtx"))
    assert library.architectures() == ((7, 5), (8, 6), (12, 0))
    engine = build_engine(tiny, Request(SIZE, "tf32", "refit"), library, (12, 0))
    assert settings_of(engine.plan) == b'{"refit": true, "tf32": true, "target": "SM120"}'
    assert engine.header.key.device == ""
    assert engine.header.parameters == ("conv.bias", "conv.weight")


def test_an_engine_is_kept_until_something_that_it_depends_on_changes(tiny: Bundle) -> None:
    library, device = Library("tensorrt", Fake()), HostDevice()

    def kept(request: Request, bundle: Bundle = tiny, made_by: Library = library) -> bool:
        return build_engine(bundle, request, made_by, HERE, device).kept

    first = Request(SIZE)
    assert [kept(first), kept(first)] == [False, True]
    for other in (
        Request((8, 16)),
        Request(SIZE, "fp16"),
        Request(SIZE, "fp32", "constant"),
        Request(SIZE, "fp32", "inputs", "loss"),
    ):
        assert [kept(other), kept(other)] == [False, True]
    assert kept(first, made_by=Library("tensorrt", Fake("11"))) is False
    key = engine_key(tiny, first, library, HERE, device.info)
    cache.engine_path(key).write_bytes(b"damaged")
    assert [kept(first), kept(first)] == [False, True]


def test_other_weights_matter_only_where_the_engine_holds_them(
    tiny: Bundle, tmp_path: Path
) -> None:
    other = open_bundle(write_tiny_bundle(tmp_path / "other.bundle", seed=1))
    library, device = Library("tensorrt", Fake()), HostDevice()
    for weights, kept in (("inputs", True), ("refit", False), ("constant", False)):
        request = Request(SIZE, "fp32", weights)  # type: ignore[arg-type]
        build_engine(tiny, request, library, HERE, device)
        assert build_engine(other, request, library, HERE, device).kept is kept, weights


def test_times_of_kernels_are_kept_for_each_device(tiny: Bundle) -> None:
    fake, device = Fake(), HostDevice()
    library = Library("tensorrt", fake)
    build_engine(tiny, Request(SIZE), library, HERE, device)
    build_engine(tiny, Request((8, 16)), library, HERE, device)
    assert fake.timings_given == [b"", b"times"]
    cache.keep(cache.timings_path(library, device.info), b"of another version")
    build_engine(tiny, Request((8, 20)), library, HERE, device)
    assert fake.timings_given[2:] == [b"of another version", b""]
    other = HostDevice(info=replace(ORIN, name="Orin NX"))
    build_engine(tiny, Request((8, 24)), library, HERE, other)
    assert fake.timings_given[4:] == [b""]


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny: Bundle, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write_text("a file where the folder should be")
    library, device = Library("tensorrt", Fake()), HostDevice()
    assert not build_engine(tiny, Request(SIZE), library, HERE, device).kept
    assert not build_engine(tiny, Request(SIZE), library, HERE, device).kept


def test_an_engine_of_something_else_is_refused_with_the_reason_and_the_command(
    tiny: Bundle, tmp_path: Path
) -> None:
    library, device, path = Library("tensorrt", Fake()), HostDevice(), tmp_path / "x.engine"
    made = build_engine(tiny, Request(SIZE, "fp16", "constant"), library, HERE, device)
    write_engine(path, made.header, made.plan)
    wanted = made.header.key
    assert read_for(path, wanted, tiny).plan == made.plan
    for change, reason in (
        ({"height": 16}, "it is for images 8 pixels high, not 16"),
        ({"precision": "fp32"}, "it computes in fp16, not fp32"),
        ({"device": "Thor"}, f"it was built on {ORIN.name}, not on Thor"),
        ({"library_version": "11.4"}, r"it was built with version 10\.3\.0\.30"),
    ):
        other: Any = change
        with pytest.raises(BackendError, match=f"cannot be used here, {reason}") as found:
            read_for(path, replace(wanted, **other), tiny)
        assert "`edgeadapt build " in str(found.value)
        assert f"-o {path}" in str(found.value)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BackendError, match=r"damaged.*edgeadapt build .* --size 12x8 "):
        read_for(path, wanted, tiny)


def test_a_stale_engine_is_refused_by_name_of_the_file(tiny: Bundle, tmp_path: Path) -> None:
    library, device, path = Library("tensorrt", Fake()), HostDevice(), tmp_path / "x.engine"
    made = build_engine(tiny, Request(SIZE, "fp32", "constant"), library, HERE, device)
    write_engine(path, made.header, made.plan)
    other = open_bundle(write_tiny_bundle(tmp_path / "other.bundle", seed=1))
    wanted = engine_key(other, Request(SIZE, "fp32", "constant"), library, HERE, device.info)
    with pytest.raises(BackendError, match=r"bundle has changed since: weights\.safetensors"):
        read_for(path, wanted, other)


def test_targets_are_architectures_and_devices() -> None:
    assert parse_target("sm_86") == (8, 6)
    assert parse_target("sm_120") == (12, 0)
    assert parse_target("orin-nano") == (8, 7)
    for name in device_names():
        assert parse_target(name) > (8, 0)
    for wrong in ("86", "sm_8", "sm_", "rtx", "SM_86", "sm_86 ", ""):
        with pytest.raises(ConfigError, match=r"target must be an architecture .*orin-nano"):
            parse_target(wrong)


def test_tensorrt_refuses_to_build_for_another_device() -> None:
    library = Library("tensorrt", Fake())
    check_target(library, HERE, ORIN)
    with pytest.raises(BackendError, match=r"sm_86 was asked for, and this machine has .*sm_87"):
        check_target(library, (8, 6), ORIN)
    with pytest.raises(BackendError, match=r"machine has no GPU.*--library tensorrt-rtx"):
        check_target(library, HERE, None)


def test_what_is_not_installed_or_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> None:
        def refuse(name: str) -> Any:
            raise error

        monkeypatch.setattr("edgeadapt.runtime.tensorrt.library.import_module", refuse)

    for name in ("tensorrt", "tensorrt_rtx"):
        wanted = name.replace("_", "-")
        fails(ModuleNotFoundError(f"No module named '{name}'", name=name))
        with pytest.raises(BackendError, match=r"is not installed.*pip install"):
            find_library(wanted)
    fails(ImportError("libnvinfer.so.10: cannot open shared object file"))
    with pytest.raises(BackendError, match=r"TensorRT is installed and cannot be loaded \(libnv"):
        find_library()
    fails(ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"))
    with pytest.raises(BackendError, match=r"cannot be loaded .*tensorrt_libs"):
        find_library()


def test_the_first_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"tensorrt": Fake(), "tensorrt_rtx": Fake("rtx")}

    def find(name: str) -> Any:
        if name not in here:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return here[name]

    monkeypatch.setattr("edgeadapt.runtime.tensorrt.library.import_module", find)
    assert find_library().title == "TensorRT 10.3.0.30"
    assert find_library("tensorrt-rtx").title == "TensorRT-RTX 1.7.1.116"
    here.pop("tensorrt")
    assert find_library().name == "tensorrt-rtx"
    here.clear()
    with pytest.raises(BackendError, match="TensorRT and TensorRT-RTX are not installed"):
        find_library()
    here["tensorrt"] = Fake()
    here["tensorrt"].__version__ = "8.6.1"
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 is too old, 10\.3 is needed"):
        find_library()
