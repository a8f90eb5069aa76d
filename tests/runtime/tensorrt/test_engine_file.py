"""The file of an engine: what is read is what was written, or it is refused with the reason."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.errors import BackendError
from edgeadapt.runtime.tensorrt.engine_file import (
    FORMAT_VERSION,
    Header,
    Key,
    difference,
    read_engine,
    write_engine,
)
from edgeadapt.runtime.tensorrt.library import TensorInfo

KEY = Key(
    graph="restore",
    height=720,
    width=1280,
    precision="fp16",
    weights="inputs",
    files={"restore.onnx": "ab", "weights.safetensors": "cd"},
    library="tensorrt",
    library_version="10.3.0",
    target="sm_87",
    device="Orin",
    edgeadapt="0.1",
)
TENSORS = (TensorInfo("image", "input", (1, 3, 720, 1280), "float32"),)
HEADER = Header(FORMAT_VERSION, "x.bundle", KEY, 7, ("a.weight",), TENSORS)
TEXT = st.text(max_size=20)
TENSOR = st.builds(TensorInfo, TEXT, TEXT, st.lists(st.integers(0, 2**40)).map(tuple), TEXT)
HEADERS = st.builds(
    Header,
    st.just(FORMAT_VERSION),
    TEXT,
    st.builds(
        Key,
        *[TEXT, st.integers(), st.integers(), TEXT, TEXT, st.dictionaries(TEXT, TEXT)],
        *[TEXT] * 5,
    ),
    st.integers(0),
    st.lists(TEXT).map(tuple),
    st.lists(TENSOR).map(tuple),
)
quick = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@quick
@given(HEADERS, st.binary(max_size=100))
def test_what_is_written_is_read(tmp_path: Path, header: Header, plan: bytes) -> None:
    write_engine(tmp_path / "x.engine", header, plan)
    assert read_engine(tmp_path / "x.engine") == (header, plan)


@quick
@given(st.data())
def test_a_changed_byte_or_a_lost_end_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.engine"
    write_engine(path, HEADER, b"engine" * 9)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
    with pytest.raises(BackendError, match=r"damaged|not an engine of edgeadapt"):
        read_engine(path)


def written(path: Path, header: Any, plan: bytes = b"engine", length: int | None = None) -> Path:
    """A file with any JSON as its header, whose hash is right."""
    said = json.dumps(header).encode()
    body = struct.pack("<Q", len(said) if length is None else length) + said + plan
    path.write_bytes(b"edgeadapt engine" + sha256(body).digest() + body)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "engine file of format 2, this edgeadapt reads 1"),
        ({"format_version": "1"}, "header of the engine is wrong .*expected int, got '1'"),
        ({"layers": 1.0}, "expected int, got 1.0"),
        ({"more": 1}, "more"),
        ({"tensors": [{"name": "x"}]}, "required field missing"),
        ({"key": None}, "header of the engine is wrong"),
    ],
)
def test_a_header_that_is_not_one_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "x.engine", {**asdict(HEADER), **change})
    with pytest.raises(BackendError, match=message):
        read_engine(path)


@pytest.mark.parametrize("header", [[], 3, None, {"format_version": None}])
def test_json_of_another_kind_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(BackendError, match="header of the engine is wrong"):
        read_engine(written(tmp_path / "x.engine", header))


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="header of the engine is wrong"):
        read_engine(written(tmp_path / "x.engine", asdict(HEADER), length=10**15))


def test_a_body_without_room_for_a_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(b"edgeadapt engine" + sha256(b"abc").digest() + b"abc")
    with pytest.raises(BackendError, match="damaged"):
        read_engine(path)


def test_no_file_and_another_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"there is no such engine.*edgeadapt build"):
        read_engine(tmp_path / "x.engine")
    (tmp_path / "x.engine").write_bytes(b"\x08\x01 an ONNX file, say")
    with pytest.raises(BackendError, match="not an engine of edgeadapt"):
        read_engine(tmp_path / "x.engine")


@pytest.mark.parametrize("field", [field.name for field in fields(Key)])
def test_every_field_of_the_key_counts_and_has_its_reason(field: str) -> None:
    other: Any = {"height": 1, "width": 1, "files": {"restore.onnx": "ab"}}.get(field, "other")
    reason = difference(replace(KEY, **{field: other}), KEY)
    expected = "the bundle has changed since: weights.safetensors" if field == "files" else "other"
    assert expected in reason or str(other) in reason
    assert difference(KEY, KEY) == ""


def test_a_reason_names_what_was_found_and_what_is_wanted() -> None:
    assert (
        difference(replace(KEY, library_version="10.3.1"), KEY)
        == "it was built with version 10.3.1 of the library, here is 10.3.0"
    )
    ahead = replace(KEY, device="")
    assert "another GPU, not on Orin" in difference(ahead, KEY)
