"""Tables for documents: what docs/quality.md shows is written by the command that measured it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeadapt.files import atomic_file


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; a bar inside a cell does not end it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def write_markdown(path: Path, *parts: str) -> None:
    """Write paragraphs and tables, an empty line between them; the file appears whole or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(
            "\n".join(part.rstrip("\n") + "\n" for part in parts), encoding="utf-8"
        )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
