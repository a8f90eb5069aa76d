"""Where the time of a step or a restoration goes, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadapt.runtime.profile.parts import Peaks
from edgeadapt.runtime.profile.roofline import Analysis, Row

_COLUMNS = ("ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s", "roofline")


def print_analysis(title: str, found: Analysis, rows: int | None, out: Console) -> None:
    """Print the groups, then the ``rows`` longest operations (None: all of them)."""
    profile = found.profile
    out.print(Text(f"=== {title} ==="), soft_wrap=True)
    peaks = "No roofline: the peaks of this device have not been measured"
    if found.peaks is not None:
        peaks = _peaks_line(found.peaks)
    out.print(Text(peaks), soft_wrap=True)
    _print_table("part", [*found.groups, found.total], out)
    shown = found.rows if rows is None else found.rows[:rows]
    if shown:
        out.print()
        _print_table("operation", shown, out)
    rest = len(found.rows) - len(shown)
    if rest > 0:
        out.print(Text(f"... and {rest} more: --rows, --dumpProfile"), soft_wrap=True)
    for line in _closing_lines(found):
        out.print(Text(line), soft_wrap=True)
    if any(part.again for part in profile.parts):
        again = sum(part.seconds[profile.median] for part in profile.parts if part.again)
        out.print(
            Text(f"{1e3 * again:.4g} ms of it computes again what memory had no room for"),
            soft_wrap=True,
        )


def _peaks_line(peaks: Peaks) -> str:
    rates = ", ".join(f"{name} {v / 1e9:.4g} GFLOP/s" for name, v in peaks.flops_per_second.items())
    return f"Measured peaks: {rates}, {peaks.bytes_per_second / 1e9:.4g} GB/s ({peaks.how})"


def _closing_lines(found: Analysis) -> Iterator[str]:
    profile = found.profile
    yield (
        f"Whole {1e3 * found.whole:.4g} ms, parts {1e3 * found.total.seconds:.4g} ms "
        f"({found.total.share:.1%}), unexplained {1e3 * found.remainder:.3g} ms; "
        f"without profiling {1e3 * found.plain:.4g} ms (profiling costs {profile.overhead:+.1%}); "
        f"median of {len(profile.whole)} runs"
    )
    least = found.total.least_seconds
    if least is not None:
        yield (
            f"Roofline of the whole: {1e3 * least:.4g} ms, {least / found.plain:.0%} of the time "
            "without profiling"
        )
    over = [row for row in found.rows if row.roofline is not None and row.roofline > 1]
    if over:
        yield (
            f"{len(over)} of {len(found.rows)} operations are above 100 %: work is counted as the "
            "direct algorithm's, of which Winograd's multiplies a part; and traffic as if it "
            "reached memory, where caches can be faster"
        )


def _print_table(first: str, rows: Sequence[Row], out: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        label = row.name if row.parts == 1 else f"{row.name} ({row.parts})"
        table.add_row(*(Text(cell) for cell in (label, *_cells(row))))
    out.print(table)


def _cells(row: Row) -> tuple[str, ...]:
    work = row.flops is not None
    traffic = row.moved_bytes is not None
    return (
        f"{1e3 * row.seconds:.3f}",
        f"{row.share:.1%}",
        f"{(row.flops or 0) / 1e9:.3f}" if work else "-",
        f"{(row.moved_bytes or 0) / 1e6:.2f}" if traffic else "-",
        f"{row.flops_per_second / 1e9:.1f}" if work else "-",
        f"{row.bytes_per_second / 1e9:.1f}" if traffic else "-",
        "-" if row.roofline is None else f"{row.roofline:.0%}",
    )
