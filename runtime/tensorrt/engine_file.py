"""The file of an engine: what it was made of and for, then the engine as the library wrote it.

    16 bytes   "edgeadapt engine"
    32 bytes   SHA-256 of all that follows
     8 bytes   length of the header, little-endian
               the header: JSON, UTF-8, the fields of `Header`
               the engine: to the end of the file

A file is written aside and renamed. One that is damaged, of a newer format, or made for something
else is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cattrs
from cattrs.v import format_exception

from edgeadapt.errors import BackendError
from edgeadapt.files import atomic_file
from edgeadapt.runtime.tensorrt.library import TensorInfo

FORMAT_VERSION = 1
_MAGIC = b"edgeadapt engine"
_DIGEST_BYTES = 32
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Key:
    """All that an engine depends on; two of the same key do the same."""

    graph: str  # "restore", "loss", "adapt.SCOPE"
    height: int
    width: int
    precision: str
    weights: str
    files: Mapping[str, str]  # of the bundle, with their SHA-256
    library: str
    library_version: str
    target: str  # "sm_86"
    device: str  # the GPU it was built on; "" if it was built ahead for its architecture
    edgeadapt: str  # version of this package


@dataclass(frozen=True)
class Header:
    """What is told of an engine."""

    format_version: int
    bundle: str  # name of its folder
    key: Key
    layers: int  # of the network before anything was fused
    parameters: tuple[str, ...]  # that are inputs, or can be exchanged
    tensors: tuple[TensorInfo, ...]  # in the order of the network, inputs first


# What is wrong with an engine, by the field of its key that differs.
_REASONS = {
    "graph": "it computes the graph {found}, {wanted} is needed",
    "height": "it is for images {found} pixels high, not {wanted}",
    "width": "it is for images {found} pixels wide, not {wanted}",
    "precision": "it computes in {found}, not {wanted}",
    "weights": "its weights are {found}, not {wanted}",
    "files": "the bundle has changed since: {changed}",
    "library": "it was built with {found}, not with {wanted}",
    "library_version": "it was built with version {found} of the library, here is {wanted}",
    "target": "it was built for {found}, not for {wanted}",
    "device": "it was built on {found}, not on {wanted}",
    "edgeadapt": "it was built by edgeadapt {found}, this is {wanted}",
}


def write_engine(path: Path, header: Header, plan: bytes) -> None:
    """Write the file; whoever looks meanwhile sees the previous one, or none."""
    said = json.dumps(asdict(header), indent=1).encode()
    body = _LENGTH.pack(len(said)) + said + plan
    with atomic_file(path) as temporary:
        temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)


def read_engine(path: Path) -> tuple[Header, bytes]:
    """Header and engine.

    Raises:
        BackendError: if there is no such file, it cannot be read, or it is no engine, damaged, or
            of a newer format.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BackendError(
            f"{path}: there is no such engine.", "`edgeadapt build` makes one."
        ) from error
    except OSError as error:
        raise BackendError(f"{path}: cannot be read ({error.strerror}).") from error
    start = len(_MAGIC) + _DIGEST_BYTES
    if data[: len(_MAGIC)] != _MAGIC:
        raise BackendError(f"{path}: not an engine of edgeadapt.", "`edgeadapt build` makes one.")
    body = memoryview(data)[start:]
    same = hashlib.sha256(body).digest() == data[len(_MAGIC) : start]
    if not same or len(body) < _LENGTH.size:
        raise BackendError(
            f"{path}: the engine is damaged (SHA-256 differs).", "build it again, or copy it again."
        )
    (length,) = _LENGTH.unpack_from(body)
    begin = _LENGTH.size + length
    return _read_header(path, bytes(body[_LENGTH.size : begin])), bytes(body[begin:])


def difference(found: Key, wanted: Key) -> str:
    """Why an engine of the key ``found`` is not the one that is ``wanted``; "" if it is."""
    for field in fields(Key):
        have, want = getattr(found, field.name), getattr(wanted, field.name)
        if have == want:
            continue
        if field.name == "files":
            names = sorted(set(have) | set(want))
            changed = ", ".join(name for name in names if have.get(name) != want.get(name))
            return _REASONS["files"].format(changed=changed)
        return _REASONS[field.name].format(found=have or "another GPU", wanted=want or "none")
    return ""


def _read_header(path: Path, text: bytes) -> Header:
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"expected an object, got {text[:50]!r}")
        version = document["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BackendError(
                f"{path}: engine file of format {version}, this edgeadapt reads {FORMAT_VERSION}.",
                "build it again, or update edgeadapt.",
            )
        return _CONVERTER.structure(document, Header)
    except cattrs.BaseValidationError as error:
        reason = "; ".join(cattrs.transform_error(error, format_exception=_said))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # cattrs on other JSON
        reason = str(error)
    raise BackendError(f"{path}: the header of the engine is wrong ({reason}).", "build it again.")


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, got {value!r:.50}")
    return value


def _said(error: BaseException, kind: type | None) -> str:
    return str(error) if type(error) is ValueError else format_exception(error, kind)


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_structure_hook(str, lambda value, _: _typed(value, str))
_CONVERTER.register_structure_hook(int, lambda value, _: _typed(value, int))
