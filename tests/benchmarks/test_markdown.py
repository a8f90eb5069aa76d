from __future__ import annotations

from pathlib import Path

from edgeadapt.benchmarks.markdown import markdown_table, write_markdown


def test_a_cell_stays_a_cell_whatever_is_in_it() -> None:
    text = markdown_table(["a", "b"], [["x|y", "one\n line"], ["", "z"]])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x\\|y | one line |", "|  | z |"]


def test_paragraphs_and_tables_are_apart(tmp_path: Path) -> None:
    write_markdown(
        tmp_path / "new" / "page.md", "First.", markdown_table(["a"], [["b"]]), "Last.\n"
    )
    assert (tmp_path / "new" / "page.md").read_text() == (
        "First.\n\n| a |\n| --- |\n| b |\n\nLast.\n"
    )
