"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.batch import Result
from edgeadapt.runtime.quality import Quality


def print_results(results: Sequence[Result]) -> None:
    """Print a row for each restored image, and a line for each adaptation that was taken back."""
    done = [result for result in results if not result.error]
    measured = any(result.after for result in done)
    columns = ["image", "size", "loss before", "after", "ms/step", "restore ms"]
    rows = [_row(result, measured) for result in done]
    if done:
        print_table([*columns, *(["PSNR", "SSIM"] if measured else [])], rows)
    for result in done:
        if result.reverted:
            console().print(Text(f"{shown(result.job.source)}: not adapted, {result.reverted}."))


def print_info(bundle: Bundle) -> None:
    """Print what is in a bundle."""
    manifest, out = bundle.manifest, console()
    adaptation = manifest.adaptation
    count = sum(row.size for row in manifest.parameters)
    lines = {
        "bundle": shown(bundle.path),
        "model": f"{manifest.model.name}: {manifest.model.description}",
        "parameters": f"{count:,} in {len(manifest.parameters)} tensors",
        "image": f"RGB, any size, padded to multiples of {manifest.image.size_multiple}",
        "adaptation": f"{adaptation.steps} steps of {adaptation.optimizer}, "
        f"step size {adaptation.step_size:g}, {len(adaptation.step_sizes)} learned",
        "files": f"{sum(_sizes(bundle).values()) / 1e6:.2f} MB in {len(_sizes(bundle))} files",
        "tools": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    for name, text in lines.items():
        out.print(Text(f"{name:<12}{text}"), soft_wrap=True)
    rows = [
        [row["name"], row["pattern"], f"{row['tensors']}", f"{row['elements']:,}", row["graph"]]
        for row in _scopes(bundle)
    ]
    print_table(["scope", "pattern", "tensors", "parameters", "graph"], rows)


def info_document(bundle: Bundle) -> dict[str, Any]:
    """What is in a bundle, for JSON."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "format_version": manifest.format_version,
        "model": asdict(manifest.model),
        "image": asdict(manifest.image),
        "adaptation": asdict(manifest.adaptation),
        "parameters": sum(row.size for row in manifest.parameters),
        "scopes": _scopes(bundle),
        "file_bytes": _sizes(bundle),
        "tools": dict(manifest.tools),
    }


def result_document(result: Result) -> dict[str, Any]:
    """One image's result, for JSON."""
    job = result.job
    document: dict[str, Any] = {"input": str(job.source), "output": str(job.target)}
    if result.error:
        return {"input": str(job.source), "error": result.error}
    if job.reference is not None:
        document["reference"] = str(job.reference)
    names = ("height", "width", "losses", "step_seconds", "restore_seconds", "reverted")
    document.update({name: getattr(result, name) for name in names})
    for name in ("before", "after"):
        quality = getattr(result, name)
        document[name] = None if quality is None else asdict(quality)
    return document


def print_json(document: object) -> None:
    """Print one JSON document; NaN and infinity, which JSON has no word for, become null."""
    sys.stdout.write(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; the first column is text, the others are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def console(stderr: bool = False) -> Console:
    """A console on the stream as it is now; lines of a file are not cut at 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, highlight=False)


def shown(path: Path) -> str:
    """A path as text that any terminal can print: bytes that are no UTF-8 become marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def format_quality(quality: Quality) -> tuple[str, str]:
    """PSNR in dB with two decimals and SSIM with four."""
    return f"{quality.psnr:.2f}", "-" if quality.ssim is None else f"{quality.ssim:.4f}"


def _row(result: Result, measured: bool) -> list[str]:
    loss = [f"{value:.6g}" for value in (*result.losses[:1], *result.losses[-1:])] or ["-", "-"]
    step_ms = 1e3 * sum(result.step_seconds) / max(len(result.step_seconds), 1)
    row = [
        shown(result.job.source),
        f"{result.width}x{result.height}",
        *loss,
        f"{step_ms:.1f}" if result.step_seconds else "-",
        f"{1e3 * result.restore_seconds:.1f}",
    ]
    if measured and result.before and result.after:
        pairs = zip(format_quality(result.before), format_quality(result.after), strict=True)
        row += [f"{before} -> {after}" for before, after in pairs]
    return row


def _scopes(bundle: Bundle) -> list[dict[str, Any]]:
    sizes = {row.name: row.size for row in bundle.manifest.parameters}
    return [
        {
            "name": scope.name,
            "pattern": scope.pattern,
            "graph": scope.graph,
            "tensors": len(scope.parameters),
            "elements": sum(sizes[name] for name in scope.parameters),
        }
        for scope in bundle.manifest.scopes
    ]


def _sizes(bundle: Bundle) -> dict[str, int]:
    return {name: (bundle.path / name).stat().st_size for name in bundle.manifest.files}


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
