"""The CSV file of a quality benchmark: one row an image and step, written as it goes.

A run that was cut short goes on where it stopped: an image is measured again only if its rows for
the same bundle, settings and files are not all there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeadapt.errors import ConfigError
from edgeadapt.files import atomic_file

_ERRORS = "surrogateescape"  # a file's name need not be UTF-8
INPUT = -1  # the step of the row that holds the blurred image itself


@dataclass(frozen=True)
class Key:
    """What an image was measured with, and which one: equal keys, equal results."""

    bundle: str  # digest of weights, graphs and adaptation
    backend: str
    scope: str
    step_size: str  # "" is the bundle's own
    steps: int  # K
    shift: str
    recording: str
    image: str
    files: str  # digest of the image's files


@dataclass(frozen=True)
class Row:
    """The quality of one image after one step."""

    model: str  # the bundle's name; two bundles may share it
    key: Key
    step: int  # INPUT: the blurred image; 0: plain inference
    psnr: float  # dB
    ssim: float | None  # None for an image smaller than its window
    loss: float | None  # of the adaptation at these weights; None for INPUT and steps not taken
    reverted: bool  # after so many steps the session would have gone back to the bundle's weights


COLUMNS = ["model", *(f.name for f in fields(Key)), *(f.name for f in fields(Row)[2:])]


class Table:
    """The rows in memory, and in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        """Read ``path``, if it exists; what a killed run left half written is dropped.

        Raises:
            ConfigError: if it is a file of something else.
        """
        self._path = path
        self._rows: dict[Key, list[Row]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._rows = {key: rows for key, rows in _read(path).items() if _is_whole(key, rows)}
        with atomic_file(path) as temporary:
            every = [row for rows in self._rows.values() for row in rows]
            temporary.write_text(_line(COLUMNS) + _text(every), "utf-8", _ERRORS)

    def get(self, key: Key) -> list[Row] | None:
        """The rows of one image, input first, or None if they are not there."""
        return self._rows.get(key)

    def add(self, key: Key, rows: Sequence[Row]) -> None:
        """Keep the rows of one image, and write them at once."""
        self._rows[key] = list(rows)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8", errors=_ERRORS, newline="") as file:
                file.write(_text(rows))


def _is_whole(key: Key, rows: Sequence[Row]) -> bool:
    return [row.step for row in rows] == [INPUT, *range(key.steps + 1)]


def _read(path: Path) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    with path.open(encoding="utf-8", errors=_ERRORS, newline="") as file:
        # Only a line that has its end was written in full.
        lines = [line for line in file if line.endswith("\n")]
    reader = csv.reader(lines)
    if next(reader, COLUMNS) != COLUMNS:
        raise ConfigError(
            f"{path}: is not a table of this benchmark: its columns are others.",
            "choose another output, or move this file away.",
        )
    for cells in reader:
        try:
            row = _parse(dict(zip(COLUMNS, cells, strict=True)))
        except ValueError as error:
            raise ConfigError(
                f"{path}: line {reader.line_num} cannot be read ({error}).",
                "remove the line; its image is measured again.",
            ) from error
        found.setdefault(row.key, []).append(row)
    return found


def _parse(cells: dict[str, str]) -> Row:
    names = [field.name for field in fields(Key)]
    texts: dict[str, Any] = {name: cells[name] for name in names}
    return Row(
        model=cells["model"],
        key=Key(**{**texts, "steps": int(cells["steps"])}),
        step=int(cells["step"]),
        psnr=float(cells["psnr"]),
        ssim=float(cells["ssim"]) if cells["ssim"] else None,
        loss=float(cells["loss"]) if cells["loss"] else None,
        reverted=bool(["False", "True"].index(cells["reverted"])),
    )


def _text(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        cells = {**asdict(row.key), **asdict(row)}
        lines.append(_line([cells[name] for name in COLUMNS]))
    return "".join(lines)


def _line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(["" if c is None else c for c in cells])
    return buffer.getvalue()
