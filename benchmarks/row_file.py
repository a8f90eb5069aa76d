"""A CSV file of dataclasses: written as rows come, read back by a run that goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_origin, get_type_hints

from edgeadapt.errors import ConfigError
from edgeadapt.files import atomic_file

R = TypeVar("R")
_ERRORS = "surrogateescape"  # a file's name need not be UTF-8


class RowFile(Generic[R]):
    """Rows of one dataclass, in memory and in a file if there is one.

    Its fields are str, a literal, int, float, bool, "float | None", or dataclasses, whose fields
    are columns of their own.
    """

    def __init__(self, path: Path | None, kind: type[R]) -> None:
        """Read ``path``, if it exists; a line that a killed run left half written is dropped.

        Raises:
            ConfigError: if it is a file of something else.
        """
        self._path, self._columns = path, columns(kind)
        self.rows: list[R] = []
        if path is not None and path.exists():
            self.rows = list(_read(path, kind, self._columns))

    def rewrite(self, rows: Sequence[R]) -> None:
        """Replace all rows; the file appears whole or not at all."""
        self.rows = list(rows)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path) as temporary:
            temporary.write_text(_line(self._columns) + _text(rows), "utf-8", _ERRORS)

    def add(self, rows: Sequence[R]) -> None:
        """Append rows, at once; `rewrite` comes first."""
        self.rows += rows
        if self._path is not None:
            with self._path.open("a", encoding="utf-8", errors=_ERRORS, newline="") as file:
                file.write(_text(rows))


def columns(kind: type[Any]) -> list[str]:
    """The names of a dataclass's fields, those of fields that are dataclasses in their place."""
    hints = get_type_hints(kind)
    found = []
    for field in fields(kind):
        inner = hints[field.name]
        found += columns(inner) if _has_columns(inner) else [field.name]
    return found


def _has_columns(value: object) -> bool:
    return is_dataclass(value)


def _read(path: Path, kind: type[R], names: list[str]) -> Iterator[R]:
    with path.open(encoding="utf-8", errors=_ERRORS, newline="") as file:
        # Only a line that has its end was written in full.
        lines = [line for line in file if line.endswith("\n")]
    reader = csv.reader(lines)
    if next(reader, names) != names:
        raise ConfigError(
            f"{path}: is not a table of this benchmark: its columns are others.",
            "choose another output, or move this file away.",
        )
    for cells in reader:
        try:
            yield _parse(kind, dict(zip(names, cells, strict=True)))
        except ValueError as error:
            raise ConfigError(
                f"{path}: line {reader.line_num} cannot be read ({error}).",
                "remove the line; what it says is measured again.",
            ) from error


def _parse(kind: type[R], cells: dict[str, str]) -> R:
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        inner = hints[field.name]
        values[field.name] = (
            _parse(inner, cells) if _has_columns(inner) else _value(inner, cells[field.name])
        )
    return kind(**values)


def _value(kind: Any, cell: str) -> object:
    if kind is bool:
        return bool(["False", "True"].index(cell))
    if kind is str or get_origin(kind) is Literal:
        return cell
    if kind in (int, float):
        return kind(cell)
    return float(cell) if cell else None


def _cells(row: Any) -> Iterator[object]:
    for field in fields(row):
        value = getattr(row, field.name)
        if _has_columns(value):
            yield from _cells(value)
        else:
            yield "" if value is None else value


def _text(rows: Sequence[Any]) -> str:
    return "".join(_line(list(_cells(row))) for row in rows)


def _line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
