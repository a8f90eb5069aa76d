"""The rows of an ablation: a folder of files, each saying how it differs from ``base.toml``.

A base is a training configuration with a table ``[ablations]``, a row a part of one with a table
``[row]``. Every row is trained for the same number of iterations with the same seed; one that
starts from the weights of another says so.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import cattrs

from edgeadapt.errors import ConfigError
from edgeadapt.training.config import PAPER_LOSS, TrainingConfig, structure_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASE = "base"
Stage = Literal["joint", "meta", "stride"]


@dataclass(frozen=True)
class SuiteConfig:
    """``[ablations]`` of the base: which rows, and what they are measured on."""

    rows: tuple[str, ...]  # names of files, in an order in which each comes after its start
    report: tuple[str, ...]  # folders below the data root
    limit: int | None = None  # images of each recording
    size: tuple[int, int] | None = None  # height and width of the middle that is measured
    clip: str = ""  # folder of the recording for rows of stage "stride"
    frames: int | None = None  # of the clip, from its first
    curves: tuple[str, ...] = ()  # rows whose PSNR against step is plotted
    control: str = ""  # row that is plotted with the adaptation of the first of these


@dataclass(frozen=True)
class RowConfig:
    """``[row]``."""

    title: str
    group: str  # rows of one group are one table
    stage: Stage  # stride trains nothing
    start: str = ""  # the row whose weights it begins with
    strides: tuple[int, ...] = ()  # stage "stride" only


@dataclass(frozen=True)
class Ablation:
    """One row: what is trained, from what, and a digest of all that decides the result."""

    name: str
    row: RowConfig
    config: TrainingConfig
    digest: str

    @property
    def iterations(self) -> int:
        """Of its own training."""
        stages = {"joint": self.config.joint.iterations, "meta": self.config.meta.iterations}
        return stages.get(self.row.stage, 0)


@dataclass(frozen=True)
class Suite:
    """All rows of a folder."""

    config: SuiteConfig
    rows: tuple[Ablation, ...]

    def row(self, name: str) -> Ablation:
        """The row called ``name``, which exists."""
        return next(row for row in self.rows if row.name == name)


def read_suite(folder: Path | None = None, iterations: int | None = None) -> Suite:
    """Read the rows of ``folder``, or those that ship.

    Args:
        folder: with ``base.toml`` and a file for each row.
        iterations: of joint training, instead of the base's; meta training in proportion.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    if folder is None:
        folder = Path(str(package_files("edgeadapt.training") / "configs" / "ablations"))
    base = _read(folder / f"{BASE}.toml")
    suite: SuiteConfig = _structure(base.pop("ablations", {}), SuiteConfig, folder / "base.toml")
    _scale_iterations(base, iterations)
    found: dict[str, Ablation] = {}
    for name in suite.rows:
        file = folder / f"{name}.toml"
        document = _read(file)
        row: RowConfig = _structure(document.pop("row", {}), RowConfig, file)
        if row.start and row.start not in found:
            raise ConfigError(
                f"{file}: starts from {row.start!r}, which is no row before it.",
                "the order is that of [ablations] rows in base.toml.",
            )
        if not row.start and row.stage != "joint":
            raise ConfigError(f"{file}: a row of stage {row.stage!r} must have a start.")
        try:
            config = structure_config(merge(base, document))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error.message}", error.hint) from error
        start = found[row.start].digest if row.start else ""
        found[name] = Ablation(name, row, config, _digest(row, config, start))
    named = (*suite.curves, *([suite.control] if suite.control else []))
    unknown = [name for name in named if name not in found]
    if unknown:
        raise ConfigError(f"{folder / 'base.toml'}: [ablations] names {unknown[0]!r}, no row.")
    return Suite(suite, tuple(found.values()))


def only(suite: Suite, names: set[str]) -> Suite:
    """The rows called ``names`` and those that they start from.

    Raises:
        ConfigError: for a name that is no row's.
    """
    known = {row.name: row for row in suite.rows}
    unknown = sorted(names - known.keys())
    if unknown:
        raise ConfigError(f"there is no row {unknown[0]!r}.", f"rows: {', '.join(known)}.")
    wanted: set[str] = set()
    more = set(names)
    while more:
        wanted |= more
        more = {known[name].row.start for name in more} - {""}
    return replace(suite, rows=tuple(row for row in suite.rows if row.name in wanted))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``changes``; tables are merged, all else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def _scale_iterations(base: dict[str, Any], iterations: int | None) -> None:
    if iterations is None:
        return
    joint, meta = base.get("joint", {}), base.get("meta", {})
    if "iterations" not in joint or "iterations" not in meta:
        raise ConfigError("base.toml: must have joint.iterations and meta.iterations.")
    scaled = max(1, round(meta["iterations"] * iterations / joint["iterations"]))
    base["joint"] = {**joint, "iterations": iterations}
    base["meta"] = {**meta, "iterations": scaled}


# Settings that came after rows were measured: a row that leaves them alone is what it was.
_LATER = {
    ("joint", "restoration"): PAPER_LOSS,
    ("meta", "restoration"): PAPER_LOSS,
    ("meta", "schedule"): "constant",
    ("meta", "unadapted_weight"): 0.0,
    ("network", "stem_stride"): 1,
}


def _digest(row: RowConfig, config: TrainingConfig, start: str) -> str:
    """16 hexadecimal digits; how a run is logged and kept is not in it."""
    sections = asdict(config)
    other = {"joint": "meta", "meta": "joint"}.get(row.stage, "meta")
    # What a joint row says of adaptation changes nothing that is measured of it.
    parts = {
        section: {k: v for k, v in own.items() if _LATER.get((section, k), ...) != v}
        for section, own in sections.items()
        if section not in ("run", other)
    }
    text = json.dumps([parts, row.stage, row.strides, start], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: not a readable TOML file ({error}).") from error


def _structure(document: Any, kind: type, file: Path) -> Any:
    try:
        return _CONVERTER.structure(document, kind)
    except cattrs.BaseValidationError as error:
        raise ConfigError(f"{file}: {'; '.join(cattrs.transform_error(error))}.") from error


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
