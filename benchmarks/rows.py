"""The CSV file of a quality benchmark: one row an image and step, written as it goes.

A run that was cut short goes on where it stopped: an image is measured again only if its rows for
the same bundle, settings and files are not all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.benchmarks.row_file import RowFile, columns

INPUT = -1  # the step of the row that holds the blurred image itself


@dataclass(frozen=True)
class Key:
    """What an image was measured with, and which one: equal keys, equal results."""

    bundle: str  # digest of weights, graphs and adaptation
    backend: str
    precision: str
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
    raw_psnr: float | None  # had it not; None where the steps led to what is not a number


COLUMNS = columns(Row)


class Table:
    """The rows in memory, and in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        """Read ``path``, if it exists; what a killed run left half written is dropped.

        Raises:
            ConfigError: if it is a file of something else.
        """
        self._file = RowFile(path, Row)
        found: dict[Key, list[Row]] = {}
        for row in self._file.rows:
            found.setdefault(row.key, []).append(row)
        self._rows = {key: rows for key, rows in found.items() if _is_whole(key, rows)}
        self._file.rewrite([row for rows in self._rows.values() for row in rows])

    def get(self, key: Key) -> list[Row] | None:
        """The rows of one image, input first, or None if they are not there."""
        return self._rows.get(key)

    def add(self, key: Key, rows: Sequence[Row]) -> None:
        """Keep the rows of one image, and write them at once."""
        self._rows[key] = list(rows)
        self._file.add(rows)


def _is_whole(key: Key, rows: Sequence[Row]) -> bool:
    return [row.step for row in rows] == [INPUT, *range(key.steps + 1)]
