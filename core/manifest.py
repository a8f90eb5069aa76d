"""The content of a bundle's ``manifest.json``, and a reader that refuses what does not hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cattrs
from cattrs.v import format_exception

from edgeadapt.errors import BundleError
from edgeadapt.files import sha256
from edgeadapt.shipped import shipped_names

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
RESTORE_GRAPH = "restore.onnx"
LOSS_GRAPH = "loss.onnx"
# Far above any use. The runtime pads to the one and keeps a value for each of the other, so what is
# beyond asks for memory that no device has.
MOST_MULTIPLE = 4096
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Model:
    """What was exported; `edgeadapt check` rebuilds it in PyTorch from the last two."""

    name: str
    description: str
    factory: str  # "package.module:callable" or "file.py:callable"
    options: Mapping[str, Any]  # keyword arguments of the factory


@dataclass(frozen=True)
class ImageContract:
    """What the graphs take and give: (1, channels, H, W) float32, sides multiples of a number."""

    size_multiple: int
    channels: int = 3
    low: float = -1.0  # value of a black pixel
    high: float = 1.0  # value of a white pixel
    layout: str = "NCHW"
    colour: str = "RGB"


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table, which is in the order of the bytes of the weights file."""

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
    pattern: str  # the regular expression that chose the parameters, or a built-in scope's name
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Adaptation:
    """How the network was trained to be adapted."""

    steps: int  # K, the trained number of gradient steps
    optimizer: str  # "sgd" or "adam"
    step_size: float  # of every parameter that step_sizes does not name
    step_sizes: Mapping[str, float] = field(default_factory=dict)  # parameter -> learned step size

    def scaled(self, factor: float) -> Adaptation:
        """The same with every step size times ``factor``."""
        sizes = {name: factor * size for name, size in self.step_sizes.items()}
        return replace(self, step_size=factor * self.step_size, step_sizes=sizes)


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``folder`` with the SHA-256 of every other file there.

    ``manifest.files`` is ignored.

    Raises:
        BundleError: if a value is not one of JSON's.
    """
    document = asdict(manifest)
    document["files"] = {
        file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST
    }
    try:
        text = json.dumps(document, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:  # only the options of the model can hold anything
        raise BundleError(
            f"{MANIFEST}: cannot be written as JSON ({error}).",
            "give the model options that are JSON values: finite numbers, texts, lists, objects.",
        ) from error
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle ``path`` and check that it agrees with itself.

    Raises:
        BundleError: naming the field at fault.
    """
    file = path / MANIFEST
    document = _read_document(path, file)
    version = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"{file}: format_version must be a positive integer, got {version!r}.",
            "export the bundle again.",
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: bundle format {version} is newer than this edgeadapt, "
            f"which reads up to {FORMAT_VERSION}.",
            "upgrade edgeadapt on this machine, or export again with this version.",
        )
    try:
        manifest = _CONVERTER.structure(document, Manifest)
    except cattrs.BaseValidationError as error:
        problem = "; ".join(cattrs.transform_error(error, format_exception=_said))
        raise BundleError(f"{file}: {problem}.", "export the bundle again.") from error
    problem = _disagreement(manifest)
    if problem:
        raise BundleError(f"{file}: {problem}.", "export the bundle again.")
    return manifest


def _read_document(path: Path, file: Path) -> Any:
    try:
        if not file.is_file():
            raise BundleError(
                f"{path}: not a bundle, it has no {MANIFEST}.",
                "give the folder that `edgeadapt export` wrote, or the name of a network that "
                f"ships with edgeadapt: {shipped_names()}.",
            )
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(
            f"{file}: not readable as JSON ({error}).", "export or copy the bundle again."
        ) from error


def _disagreement(manifest: Manifest) -> str:
    """What in the manifest contradicts the rest of it, or is beyond this version; "" if nothing."""
    return (
        _bad_parameters(manifest.parameters)
        or _bad_scopes(manifest)
        or _bad_files(manifest)
        or image_problem(manifest.image)
        or adaptation_problem(manifest.adaptation, {row.name for row in manifest.parameters})
    )


def _bad_parameters(parameters: Sequence[Parameter]) -> str:
    repeated = _repeated([row.name for row in parameters])
    if repeated is not None:
        return f"parameter {repeated!r} is listed twice"
    if not parameters:
        return "the parameter table is empty"
    for row in parameters:
        if any(side < 1 for side in row.shape):
            return f"parameter {row.name!r} has the shape {row.shape}"
    return ""


def _bad_scopes(manifest: Manifest) -> str:
    repeated = _repeated([scope.name for scope in manifest.scopes])
    if repeated is not None:
        return f"scope {repeated!r} is listed twice"
    known = {row.name for row in manifest.parameters}
    for scope in manifest.scopes:
        repeated = _repeated(scope.parameters)
        if repeated is not None:
            return f"scope {scope.name!r} lists parameter {repeated!r} twice"
        for name in scope.parameters:
            if name not in known:
                return f"scope {scope.name!r} lists the unknown parameter {name!r}"
    return ""


def _bad_files(manifest: Manifest) -> str:
    for name in manifest.files:
        if Path(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            return f"{name!r} is not the plain name of a file in the bundle"
    required = {WEIGHTS, RESTORE_GRAPH, LOSS_GRAPH, *(scope.graph for scope in manifest.scopes)}
    missing = sorted(required - set(manifest.files))
    return f"there is no hash for {', '.join(map(repr, missing))}" if missing else ""


def image_problem(image: ImageContract) -> str:
    """What a reader refuses in ``image``; "" if nothing."""
    if not 1 <= image.size_multiple <= MOST_MULTIPLE:
        return f"size_multiple must be from 1 to {MOST_MULTIPLE}, got {image.size_multiple}"
    expected = ImageContract(image.size_multiple)
    if image != expected:
        return f"the image must be {_described(expected)}, got {_described(image)}"
    return ""


def adaptation_problem(adaptation: Adaptation, parameters: Collection[str]) -> str:
    """What a reader refuses in ``adaptation`` of a network with these parameters; "" if nothing."""
    try:
        _CONVERTER.structure(asdict(adaptation), Adaptation)  # types, and finite numbers
    except cattrs.BaseValidationError as error:
        return "adaptation: " + "; ".join(cattrs.transform_error(error, format_exception=_said))
    if not 0 <= adaptation.steps <= MOST_STEPS:
        return f"adaptation.steps must be from 0 to {MOST_STEPS}, got {adaptation.steps}"
    if adaptation.optimizer not in ("sgd", "adam"):
        return f"adaptation.optimizer must be sgd or adam, got {adaptation.optimizer!r}"
    unknown = sorted(set(adaptation.step_sizes) - set(parameters))
    if unknown:
        return f"adaptation.step_sizes names the unknown parameter {unknown[0]!r}"
    for value in (adaptation.step_size, *adaptation.step_sizes.values()):
        if value < 0:
            return f"a step size must be at least 0, got {value:g}"
    return ""


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _described(image: ImageContract) -> str:
    span = f"[{image.low:g}, {image.high:g}]"
    return f"{image.colour} {image.layout} with {image.channels} channels in {span}"


def _make_converter() -> cattrs.Converter:
    """JSON's own types and nothing else: by itself cattrs would take "3" for 3 and 5 for "5"."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(str, lambda value, _: _typed(value, str))
    converter.register_structure_hook(int, lambda value, _: _typed(value, int))
    converter.register_structure_hook(float, lambda value, _: _finite(value))
    return converter


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"expected {kind.__name__}, got {value!r:.50}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError(f"expected a finite number, got {value!r:.50}")
    return float(value)


def _said(error: BaseException, kind: type | None) -> str:
    """Our own words for a wrong value, those of cattrs for the rest."""
    return str(error) if type(error) is ValueError else format_exception(error, kind)


_CONVERTER = _make_converter()
