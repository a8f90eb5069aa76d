"""The bundle: the folder in which an exported network travels to a device. The seam of the project.

``docs/bundle.md`` documents every file and field. Reading refuses a bundle whole, before anything of it is used: a
missing or changed file, a newer format, a table that does not match the weights, a graph that points outside.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
import numpy.typing as npt

from edgeadapt.errors import BundleError
from edgeadapt.files import sha256

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
RESTORE_GRAPH = "restore.onnx"
LOSS_GRAPH = "loss.onnx"


@dataclass(frozen=True)
class Model:
    """What was exported; ``factory`` and ``options`` let `edgeadapt check` rebuild it in PyTorch."""

    name: str
    description: str
    factory: str  # "package.module:callable" or "file.py:callable"
    options: Mapping[str, Any]  # keyword arguments of the factory


@dataclass(frozen=True)
class ImageContract:
    """What the graphs take and give: (1, channels, H, W) float32, H and W multiples of ``size_multiple``."""

    size_multiple: int
    channels: int = 3
    low: float = -1.0  # value of a black pixel
    high: float = 1.0  # value of a white pixel
    layout: str = "NCHW"
    colour: str = "RGB"


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table; rows are in the order of the bytes in ``weights.safetensors``."""

    name: str
    shape: tuple[int, ...]
    group: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Scope:
    """A set of parameters that adaptation may change, and the graph that gives their gradients."""

    name: str
    graph: str
    pattern: str  # the regular expression that chose the parameters, or the name of a built-in scope
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Adaptation:
    """How the network was trained to be adapted."""

    steps: int  # K, the trained number of gradient steps
    optimizer: str  # "sgd" or "adam"
    step_size: float  # of every parameter that step_sizes does not name
    step_sizes: Mapping[str, float] = field(default_factory=dict)  # parameter -> learned step size


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``."""

    format_version: int
    model: Model
    image: ImageContract
    adaptation: Adaptation
    parameters: tuple[Parameter, ...]
    scopes: tuple[Scope, ...]
    files: Mapping[str, str]  # file name -> SHA-256
    tools: Mapping[str, str]  # tool -> version, for the record


class Bundle:
    """A bundle that has been read and found sound. Use `open_bundle` to get one."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def weights(self) -> npt.NDArray[np.float32]:
        """A fresh copy of all parameters as one flat float32 array, in the order of the parameter table."""
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


def find_bundle(name: str | Path) -> Path:
    """The folder of a bundle: a path as it is, or the name of a bundle that ships in the package ("default")."""
    shipped = Path(str(package_files("edgeadapt"))) / "bundles" / f"{name}.bundle"
    return shipped if not Path(name).exists() and shipped.is_dir() else Path(name)


def open_bundle(name: str | Path) -> Bundle:
    """Read a bundle and check all of it: version, tables, hashes, weights and the inputs and outputs of every graph.

    Raises:
        BundleError: naming the file or field at fault.
    """
    path = find_bundle(name)
    manifest = _read_manifest(path)
    bundle = Bundle(path, manifest)
    _check_names(bundle)
    _check_files(bundle)
    _check_weights(bundle)
    from edgeadapt.graphs import check_graphs  # imports onnx, which reading a manifest does not need

    check_graphs(bundle)
    return bundle


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``folder`` with the SHA-256 of every other file there; ``manifest.files`` is ignored."""
    document = asdict(manifest)
    document["files"] = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def safetensors_layout(file: Path) -> dict[str, tuple[int, int]]:
    """Absolute (offset, length) in bytes of each tensor in a safetensors file, in the order of the bytes."""
    start, header = _safetensors_header(file)
    rows = sorted((entry["data_offsets"], name) for name, entry in header.items())
    return {name: (start + begin, end - begin) for (begin, end), name in rows}


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path}: not a bundle, it has no {MANIFEST}.",
            "give the folder that `edgeadapt export` wrote, or `default` for the bundle that ships with edgeadapt.",
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(f"{file}: not readable as JSON ({error}).", "export or copy the bundle again.") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{file}: format_version must be a positive integer, got {version!r}.")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: bundle format {version} is newer than this edgeadapt, which reads up to {FORMAT_VERSION}.",
            "upgrade edgeadapt on this machine, or export again with this version.",
        )
    try:
        return _CONVERTER.structure(document, Manifest)
    except cattrs.BaseValidationError as error:
        problem = "; ".join(cattrs.transform_error(error))
        raise BundleError(f"{file}: {problem}.", "export the bundle again.") from error


def _check_names(bundle: Bundle) -> None:
    manifest = bundle.manifest
    names = [parameter.name for parameter in manifest.parameters]
    if len(set(names)) != len(names):
        raise BundleError(f"{bundle.path}: a parameter is listed twice in {MANIFEST}.")
    required = {WEIGHTS, RESTORE_GRAPH, LOSS_GRAPH, *(scope.graph for scope in manifest.scopes)}
    missing = sorted(required - set(manifest.files))
    if missing:
        raise BundleError(f"{bundle.path}: {MANIFEST} lists no hash for {', '.join(missing)}.")
    for file in manifest.files:
        if Path(file).name != file or file in ("", ".", ".."):
            raise BundleError(f"{bundle.path}: {file!r} in {MANIFEST} is not the plain name of a file in the bundle.")
    known = set(names)
    mentioned = {name for scope in manifest.scopes for name in scope.parameters} | set(manifest.adaptation.step_sizes)
    if mentioned - known:
        raise BundleError(f"{bundle.path}: {MANIFEST} names unknown parameter {min(mentioned - known)!r}.")
    if manifest.image.size_multiple < 1 or manifest.adaptation.steps < 0:
        raise BundleError(f"{bundle.path}: size_multiple must be at least 1 and steps at least 0.")
    if manifest.adaptation.optimizer not in ("sgd", "adam"):
        raise BundleError(f"{bundle.path}: optimizer must be sgd or adam, got {manifest.adaptation.optimizer!r}.")


def _check_files(bundle: Bundle) -> None:
    for name, expected in bundle.manifest.files.items():
        file = bundle.path / name
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{bundle.path}: {name} is missing.", "copy the whole folder again.")
        if sha256(file) != expected:
            raise BundleError(
                f"{file}: its bytes are not the ones that were exported (SHA-256 differs).",
                "copy the bundle again; to change weights, use Session.save_weights and load_weights.",
            )


def _check_weights(bundle: Bundle) -> None:
    file = bundle.path / WEIGHTS
    start, header = _safetensors_header(file)
    position = 0
    for row in bundle.manifest.parameters:
        entry = header.pop(row.name, None)
        if entry is None:
            raise BundleError(f"{file}: parameter {row.name!r} is missing.", "export the bundle again.")
        if entry["dtype"] != "F32" or tuple(entry["shape"]) != row.shape:
            raise BundleError(
                f"{file}: parameter {row.name!r} is {entry['dtype']} {tuple(entry['shape'])}, "
                f"{MANIFEST} says F32 {row.shape}.",
                "export the bundle again.",
            )
        expected = [position, position + 4 * row.size]
        if entry["data_offsets"] != expected:
            raise BundleError(f"{file}: parameter {row.name!r} is not where the order of the table puts it.")
        position = expected[1]
    if header:
        raise BundleError(f"{file}: holds {min(header)!r}, which {MANIFEST} does not list.")
    if file.stat().st_size != start + position:
        raise BundleError(f"{file}: {file.stat().st_size} bytes, expected {start + position}.", "copy the bundle again.")


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
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{file}: not a safetensors file ({error}).", "export the bundle again.") from error
    return 8 + length, header


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
