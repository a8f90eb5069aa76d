"""`edgeadapt export` and `edgeadapt check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import ConfigError, ExportError
from edgeadapt.export.check import Finding, Graphs, compare, failures, same_weights
from edgeadapt.export.trust import trusted_factory

if TYPE_CHECKING:
    from torch import nn

_PATH = click.Path(path_type=Path)
_NOT_WITHIN_BOUNDS = 1


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    required=True,
    type=_PATH,
    help="Bundle to write; one that is there is replaced.",
)
@click.option("--weights", type=_PATH, help="State dict for a factory (torch.save).")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=JSON", help="Argument of a factory."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="NAME=REGEX",
    help="A scope beside all, heads and bias.",
)
@click.option("--steps", type=click.IntRange(min=0), help="K; the checkpoint's unless given.")
@click.option(
    "--step-size",
    type=click.FloatRange(min=0, min_open=True),
    help="One step size for all parameters.",
)
@click.option(
    "--factor",
    type=click.FloatRange(min=0, min_open=True),
    help="Times the checkpoint's step sizes, the learned ones too.",
)
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]))
@click.option("--name", help="Name of the model in the manifest.")
def export(
    source: str,
    output: Path,
    weights: Path | None,
    options: Sequence[str],
    scopes: Sequence[str],
    factor: float | None,
    name: str | None,
    **adaptation: Any,
) -> None:
    """Export SOURCE to a bundle.

    SOURCE is a checkpoint written by `edgeadapt train`, or a factory of a network of your own as
    file.py:callable or package.module:callable."""
    from edgeadapt.export.exporter import BUILT_IN_SCOPES, ExportOptions, export_bundle
    from edgeadapt.export.source import open_source

    found = open_source(
        source, {key: _value(text) for key, text in _pairs("--option", options)}, weights
    )
    model = replace(found.model, name=name) if name else found.model
    changes = {key: value for key, value in adaptation.items() if value is not None}
    if "step_size" in changes:
        if factor is not None:
            raise ConfigError(
                f"--factor {factor:g} scales step sizes, --step-size replaces all of them.",
                "give one of the two.",
            )
        changes["step_sizes"] = {}
    everything = {scope: scope for scope in BUILT_IN_SCOPES} | dict(_pairs("--scope", scopes))
    chosen = replace(found.adaptation.scaled(factor or 1.0), **changes)
    settings = ExportOptions(model, chosen, everything)
    console = Console(stderr=True)
    with console.status("exporting") as status:
        bundle = export_bundle(found.network, output, settings, status.update)
    size = sum(file.stat().st_size for file in output.iterdir())
    names = ", ".join(
        f"{scope.name} ({len(scope.parameters)} tensors)" for scope in bundle.manifest.scopes
    )
    click.echo(f"{output}: {size / 1e6:.2f} MB, scopes {names}")


@click.command()
@click.argument("bundle")
@click.option(
    "--checkpoint",
    type=_PATH,
    help="Checkpoint or state dict that the weights must equal; buffers come from it, too.",
)
@click.option("--model", help="Factory of a network that is not edgeadapt's own: file.py:callable.")
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    help="Length of the trajectory; the bundle's K unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(
    bundle: str, checkpoint: Path | None, model: str | None, steps: int | None, as_json: bool
) -> int:
    """Check a bundle: hashes and graphs, and with PyTorch installed every number against float64.

    Exits with 1 if a number is out of its bound.
    """
    opened = open_bundle(bundle)
    Graphs(opened)
    lines = [
        f"{opened.path}: {len(opened.manifest.files)} files have their hashes, every graph opens."
    ]
    network, reason = _network(opened, model, checkpoint)
    findings: list[Finding] = []
    if network is None:
        if checkpoint is not None:
            raise ExportError(f"--checkpoint {checkpoint} was not compared: {reason}.")
        lines.append(f"Not compared with PyTorch: {reason}.")
    else:
        if checkpoint is not None:
            lines.append(_compare_weights(opened, network, checkpoint))
        findings = _findings(opened, network, steps)
    _report(lines, findings, as_json)
    return _NOT_WITHIN_BOUNDS if failures(findings) else 0


def _network(
    bundle: Bundle, model: str | None, checkpoint: Path | None
) -> tuple[nn.Module | None, str]:
    """The bundle's network rebuilt in PyTorch, or the reason why it is not."""
    factory, reason = trusted_factory(bundle.manifest.model, model)
    if factory is None:
        return None, reason
    from edgeadapt.export.source import build

    network = build(factory, bundle.manifest.model.options)
    # Statistics of a normalisation, say: the graphs hold them, but the weights file does not, so
    # the network just built has others.
    learned = {name for name, _ in network.named_parameters()}
    buffers = sorted(set(network.state_dict()) - learned)
    if buffers and checkpoint is None:
        return None, f"the network has buffers ({buffers[0]}, ...), so it needs --checkpoint"
    return network, ""


def _compare_weights(bundle: Bundle, network: nn.Module, checkpoint: Path) -> str:
    from edgeadapt.export.source import load_weights, read_state

    state = read_state(checkpoint)
    load_weights(network, state, checkpoint)
    odd = same_weights(bundle, state)
    if odd:
        raise ExportError(
            f"{bundle.path}: parameter {odd!r} is not the one in {checkpoint}.",
            "export that checkpoint again.",
        )
    return f"The weights are those of {checkpoint}, bit for bit."


def _findings(bundle: Bundle, network: nn.Module, steps: int | None) -> list[Finding]:
    from edgeadapt.export.reference import Reference

    with Console(stderr=True).status("comparing with PyTorch") as status:
        return compare(bundle, Reference(network), status.update, steps)


def _report(lines: Sequence[str], findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        rows = [vars(finding) | {"ok": finding.ok} for finding in findings]
        click.echo(json.dumps({"messages": list(lines), "findings": rows}, indent=1))
        return
    for line in lines:
        click.echo(line)
    if findings:
        table = Table("compared with PyTorch float64", "worst", "bound", "", "")
        for finding in findings:
            mark = "ok" if finding.ok else "[red]FAILED[/red]"
            table.add_row(
                finding.what, f"{finding.value:.1e}", f"{finding.bound:.0e}", mark, finding.note
            )
        Console(width=None if Console().is_terminal else 160).print(table)
        bad = len(failures(findings))
        click.echo(
            f"{bad} of {len(findings)} out of bounds."
            if bad
            else f"All {len(findings)} within bounds."
        )


def _pairs(option: str, values: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [value.partition("=") for value in values]
    for value, (key, separator, _) in zip(values, pairs, strict=True):
        if not key or not separator:
            raise ConfigError(f"{option} {value!r} must be NAME=VALUE.")
    return [(key, text) for key, _, text in pairs]


def _value(text: str) -> Any:
    """JSON, or the text itself: --option preset=edge needs no quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text
