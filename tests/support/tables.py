"""The tables that benchmarks write."""

from __future__ import annotations

import csv
from pathlib import Path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Each line of a CSV file by the names of its columns."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
