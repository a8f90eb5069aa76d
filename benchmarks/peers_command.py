"""`edgeadapt bench peers`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgeadapt.benchmarks import cuda_bench
from edgeadapt.benchmarks import peers as measuring
from edgeadapt.benchmarks.cuda_peers import torch_variants
from edgeadapt.benchmarks.machine import describe
from edgeadapt.benchmarks.memory import peak_mib
from edgeadapt.benchmarks.peers import Work
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.export.trust import trusted_factory
from edgeadapt.runtime.backend import EngineOptions, Precision, usable_cores
from edgeadapt.runtime.backends import ON_CPU, open_backend
from edgeadapt.runtime.options import ImageSize, json_option, scope_option, threads_option
from edgeadapt.runtime.report import console, print_json, print_table

Row = dict[str, Any]


@click.command()
@click.argument("bundle")
@click.option(
    "--size",
    "sizes",
    type=ImageSize(),
    multiple=True,
    default=["256x256"],
    show_default=True,
    metavar="WIDTHxHEIGHT",
    help="Of the image.",
)
@click.option("--repeats", type=click.IntRange(1), default=11, show_default=True)
@scope_option("Which parameters change.")
@threads_option("CPU threads of everyone.  [every core]")
@click.option("--compile", "compiled", is_flag=True, help="PyTorch's compiler too; takes minutes.")
@click.option("--bf16", "half", is_flag=True, help="Everyone who can, in bfloat16 as well.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cuda: our CUDA engine in every precision against PyTorch on the same GPU.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=5, show_default=True, help="K, with --device cuda."
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(torch_variants(compiled=True)),
    help="Of PyTorch, with --device cuda: only this; may be given several times.",
)
@click.option("--memory/--no-memory", default=True, help="Peak memory, each in its own process.")
@click.option("--model", help="Factory of a network that is not edgeadapt's own: file.py:callable.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="CSV to add the rows to.")
@json_option()
def peers(
    bundle: str,
    sizes: Sequence[tuple[int, int]],
    repeats: int,
    scope: str,
    threads: int | None,
    compiled: bool,
    half: bool,
    device: str,
    steps: int,
    ways: Sequence[str],
    memory: bool,
    model: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """One adaptation step and one restoration: every backend against PyTorch, in turn.

    Loss, gradients and restored image are compared before anything is timed.
    """
    on_gpu = device == "cuda"
    columns = cuda_bench.COLUMNS if on_gpu else _COLUMNS
    opened = open_bundle(bundle)
    opened.scope(scope)  # refuses a wrong one before the work
    if out is not None and out.exists() and _header(out) != columns:
        raise ConfigError(f"{out}: is a table of something else.", "choose another output.")
    factory, reason = trusted_factory(opened.manifest.model, model)
    if factory is None:
        # The reason may quote the bundle: no markup.
        console(stderr=True).print(f"Only edgeadapt is measured: {reason}.", markup=False)
    if on_gpu:
        cores = threads or usable_cores()
        works = [Work(str(opened.path), h, w, scope, cores, factory or "") for h, w in sizes]
        with console(stderr=True).status("comparing and timing"):
            asked = ways or torch_variants(compiled)
            rows = cuda_bench.measure(opened, works, steps, repeats, asked)
        _give(rows, columns, out, as_json, cuda_bench.show)
        return
    names = _backends(opened, half)
    if factory is not None:
        names += measuring.torch_names(compiled, half)
    rows = []
    for height, width in sizes:
        cores = threads or usable_cores()
        work = Work(str(opened.path), height, width, scope, cores, factory or "")
        # Memory first: nothing else is open then.
        rows += _measure(opened, names, work, repeats, _peaks(names, work) if memory else {})
    _give(rows, columns, out, as_json, _print)


def _give(
    rows: Sequence[Row],
    columns: Sequence[str],
    out: Path | None,
    as_json: bool,
    show: Callable[[Sequence[Row]], None],
) -> None:
    if out is not None:
        _append(out, rows, columns)
    if as_json:
        print_json(rows)
    else:
        show(rows)


def _backends(bundle: Bundle, half: bool) -> list[str]:
    """The backends of the CPU that can run the bundle, the one that `auto` takes first."""
    weights = bundle.weights()
    found, failures = [], []
    precisions: Sequence[Precision] = ("fp32", "bf16") if half else ("fp32",)
    for precision in precisions:
        for name in ON_CPU:
            options = EngineOptions(precision=precision)
            try:
                open_backend(name, bundle, weights, weights.copy(), options)
                found.append(name + (measuring.HALF if precision == "bf16" else ""))
            except BackendError as error:
                failures.append(str(error))
    if not found:
        raise BackendError(" | ".join(failures))
    return found


def _peaks(names: Sequence[str], work: Work) -> dict[tuple[str, str], float]:
    """(peer, operation) -> MiB."""
    result = {}
    with console(stderr=True).status("measuring memory"):
        for name in names:
            for operation in _OPERATIONS:
                result[name, operation] = peak_mib(name, operation, work)
    return result


def _measure(
    bundle: Bundle,
    names: Sequence[str],
    work: Work,
    repeats: int,
    peaks: Mapping[tuple[str, str], float],
) -> list[Row]:
    with console(stderr=True).status("comparing and timing"):
        opened, agreement = measuring.make_peers(names, bundle, work)
        medians = measuring.medians_ms(opened, repeats)
    shared = {"bundle": bundle.path.resolve().stem, "height": work.height, "width": work.width}
    shared |= {"scope": work.scope, "threads": work.threads, "repeats": repeats}
    machine = describe()
    return [
        {
            "operation": operation,
            "peer": name,
            **shared,
            "median_ms": round(medians[operation][name], 3),
            "ratio": round(medians[operation][name] / medians[operation][names[0]], 3),
            "peak_mib": round(peaks[name, operation], 1) if peaks else None,
            **{f"{key}_error": value for key, value in asdict(agreement[name]).items()},
            **machine,
        }
        for operation in _OPERATIONS
        for name in names
    ]


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _append(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _print(rows: Sequence[Row]) -> None:
    print_table(
        ["peer", "operation", "size", "ms", "ratio", "peak MiB", "gradients off by"],
        [
            [
                row["peer"],
                row["operation"],
                f"{row['width']}x{row['height']}",
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.2f}",
                "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
                f"{row['gradients_error']:.1e}",
            ]
            for row in rows
        ],
    )
    first = rows[0]
    console().print(
        f"Medians of {first['repeats']}, {first['threads']} threads, {first['cpu']}. "
        f"ratio: time over that of {first['peer']}."
    )


_OPERATIONS = ("step", "restore")
_ERRORS = ["loss_error", "gradients_error", "worst_tensor_error", "image_error"]
_COLUMNS = ["operation", "peer", "bundle", "height", "width", "scope", "threads", "repeats"]
_COLUMNS += ["median_ms", "ratio", "peak_mib", *_ERRORS, "cpu", "commit", "date"]
_COLUMNS += ["python", "edgeadapt", "numpy", "onnxruntime", "torch"]
