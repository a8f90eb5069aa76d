"""The bundle: the folder in which an exported network travels to a device. The project's seam.

``docs/bundle.md`` documents every file and field. Reading refuses a bundle whole, before anything
of it is used: a missing or changed file, a newer format, a table that does not match the weights, a
graph that points outside.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import BundleError
from edgeadapt.files import sha256
from edgeadapt.manifest import (
    FORMAT_VERSION,
    LOSS_GRAPH,
    MANIFEST,
    RESTORE_GRAPH,
    WEIGHTS,
    Adaptation,
    ImageContract,
    Manifest,
    Model,
    Parameter,
    Scope,
    read_manifest,
    write_manifest,
)
from edgeadapt.shipped import find_bundle

__all__ = [
    "FORMAT_VERSION",
    "LOSS_GRAPH",
    "MANIFEST",
    "RESTORE_GRAPH",
    "WEIGHTS",
    "Adaptation",
    "Bundle",
    "ImageContract",
    "Manifest",
    "Model",
    "Parameter",
    "Scope",
    "open_bundle",
    "safetensors_layout",
    "write_manifest",
]

Scalar = TypeVar("Scalar", bound=np.generic)


class Bundle:
    """A bundle that has been read and found sound. Use `open_bundle` to get one."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def weights(self) -> npt.NDArray[np.float32]:
        """A fresh copy of all parameters, flat float32 in the order of the parameter table."""
        file = self.path / WEIGHTS
        start, _ = _safetensors_header(file)
        return np.fromfile(file, dtype="<f4", offset=start).astype(np.float32, copy=False)

    def offsets(self) -> dict[str, slice]:
        """Where each parameter lies in the flat array of `weights`."""
        result, begin = {}, 0
        for parameter in self.manifest.parameters:
            result[parameter.name] = slice(begin, begin + parameter.size)
            begin += parameter.size
        return result

    def named(
        self, flat: npt.NDArray[Scalar], scope: str | None = None
    ) -> dict[str, npt.NDArray[Scalar]]:
        """Views of an array that is laid out as `weights`: each parameter's part, in its shape.

        Of all parameters, or of those of a scope, in its order.
        """
        offsets = self.offsets()
        shapes = {row.name: row.shape for row in self.manifest.parameters}
        names = shapes if scope is None else self.scope(scope).parameters
        return {name: flat[offsets[name]].reshape(shapes[name]) for name in names}

    def scope(self, name: str) -> Scope:
        """The scope called ``name``; a `BundleError` lists the ones there are."""
        for scope in self.manifest.scopes:
            if scope.name == name:
                return scope
        names = ", ".join(scope.name for scope in self.manifest.scopes)
        raise BundleError(
            f"{self.path}: no adaptation scope {name!r}.",
            f"the bundle has: {names}; `edgeadapt export --scope NAME=REGEX` adds one.",
        )


def open_bundle(name: str | Path) -> Bundle:
    """Read a bundle and check all of it: version, tables, hashes, weights and every graph.

    ``name`` is its folder, or a name that `edgeadapt.shipped` knows: "nano", "edge", "default".

    Raises:
        BundleError: naming the file or field at fault.
    """
    path = find_bundle(name)
    bundle = Bundle(path, read_manifest(path))
    _check_files(bundle)
    _check_weights(bundle)
    from edgeadapt.graphs import check_graphs  # imports onnx, which reading a manifest need not

    check_graphs(bundle)
    return bundle


def safetensors_layout(file: Path) -> dict[str, tuple[int, int]]:
    """Absolute (offset, length) in bytes of each tensor in a safetensors file, in byte order."""
    start, header = _safetensors_header(file)
    rows = sorted((entry["data_offsets"], name) for name, entry in header.items())
    return {name: (start + begin, end - begin) for (begin, end), name in rows}


def _check_files(bundle: Bundle) -> None:
    for name, expected in bundle.manifest.files.items():
        file = bundle.path / name
        try:
            found = file.is_file() and not file.is_symlink()  # a link may point outside
            same = found and sha256(file) == expected
        except (OSError, ValueError) as error:  # a name that no file can have
            raise BundleError(f"{bundle.path}: {name!r} cannot be read ({error}).") from error
        if not found:
            raise BundleError(f"{bundle.path}: {name} is missing.", "copy the whole folder again.")
        if not same:
            raise BundleError(
                f"{file}: its bytes are not the ones that were exported (SHA-256 differs).",
                "copy the bundle again; to change weights, use Session.save_weights and "
                "load_weights.",
            )


def _check_weights(bundle: Bundle) -> None:
    file = bundle.path / WEIGHTS
    start, header = _safetensors_header(file)
    position = 0
    for row in bundle.manifest.parameters:
        entry = header.pop(row.name, None)
        if entry is None:
            raise BundleError(
                f"{file}: parameter {row.name!r} is missing.", "export the bundle again."
            )
        if entry["dtype"] != "F32" or tuple(entry["shape"]) != row.shape:
            raise BundleError(
                f"{file}: parameter {row.name!r} is {entry['dtype']} {tuple(entry['shape'])}, "
                f"{MANIFEST} says F32 {row.shape}.",
                "export the bundle again.",
            )
        expected = [position, position + 4 * row.size]
        if entry["data_offsets"] != expected:
            raise BundleError(
                f"{file}: parameter {row.name!r} is not where the order of the table puts it.",
                "export the bundle again.",
            )
        position = expected[1]
    if header:
        raise BundleError(
            f"{file}: holds {min(header)!r}, which {MANIFEST} does not list.",
            "export the bundle again.",
        )
    if file.stat().st_size != start + position:
        raise BundleError(
            f"{file}: {file.stat().st_size} bytes, expected {start + position}.",
            "copy the bundle again.",
        )


def _safetensors_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Start of the data section in bytes, and the header without its free-form metadata.

    Read here and not through the safetensors package, because that one does not tell offsets.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(file.stat().st_size, 100_000_000):
                raise ValueError(f"header of {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
                raise ValueError(f"data_offsets {entry['data_offsets']}")
            tuple(entry["shape"]), str(entry["dtype"])
    except (
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
    ) as error:
        raise BundleError(
            f"{file}: not a safetensors file ({error}).", "export the bundle again."
        ) from error
    return 8 + length, header
