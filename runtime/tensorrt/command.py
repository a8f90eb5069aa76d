"""`edgeadapt build`: an engine of TensorRT or TensorRT-RTX in a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.image import padded_size
from edgeadapt.runtime import report
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.options import ImageSize, json_option, precision_option
from edgeadapt.runtime.tensorrt.build import Engine, Request, build_engine
from edgeadapt.runtime.tensorrt.engine_file import write_engine
from edgeadapt.runtime.tensorrt.library import NAMES, Capability, Library, find_library
from edgeadapt.runtime.tensorrt.models import RESTORE, WEIGHTS, Weights
from edgeadapt.runtime.tensorrt.target import parse_target


@click.command()
@click.argument("bundle")
@click.option("-o", "--out", required=True, metavar="ENGINE", help="File to write.")
@click.option(
    "--size",
    type=ImageSize(),
    required=True,
    metavar="WxH",
    help="Of the images; padded to the bundle's multiple.",
)
@precision_option("Of activations; what the engine takes and gives stays float32.")
@click.option(
    "--weights",
    type=click.Choice(list(WEIGHTS)),
    default="inputs",
    show_default=True,
    help="inputs: taken with each image, so that adapted ones cost nothing; refit: exchanged "
    "when they change; constant: those of the bundle for ever.",
)
@click.option(
    "--graph",
    default=RESTORE,
    show_default=True,
    metavar="GRAPH",
    help="restore, loss, or adapt.SCOPE: a step's loss and gradients.",
)
@click.option("--target", help="sm_86, say, or a device's name: orin-nano.  [the GPU here]")
@click.option(
    "--library", "wanted", type=click.Choice(list(NAMES)), help="Which.  [TensorRT, else -RTX]"
)
@json_option()
def build(
    bundle: str,
    out: str,
    size: tuple[int, int],
    precision: Precision,
    weights: Weights,
    graph: str,
    target: str | None,
    wanted: str | None,
    as_json: bool,
) -> None:
    """Build an engine of BUNDLE for images of one size with TensorRT or TensorRT-RTX.

    TensorRT builds on the device that is to run the engine, and only there. TensorRT-RTX builds
    for a --target without a GPU. `edgeadapt run --backend tensorrt --engine ENGINE` uses it.
    """
    path = _checked(out)  # before the minutes that building can take
    opened = open_bundle(bundle)
    named = None if target is None else parse_target(target)
    multiple = opened.manifest.image.size_multiple
    request = Request(padded_size(*size, multiple), precision, weights, graph)
    library = find_library(wanted or "")
    device = _device(library, named)
    try:
        chosen = device.info.capability if named is None and device is not None else named
        assert chosen is not None
        engine = build_engine(opened, request, library, chosen, device)
    finally:
        if device is not None:
            device.close()
    write_engine(path, engine.header, engine.plan)
    _print(engine, out, as_json)


def _device(library: Library, target: Capability | None) -> Device | None:
    """The GPU in the machine, unless the library builds for a target that was named."""
    if library.builds_ahead and target is not None:
        return None
    from edgeadapt.runtime.cuda.pycuda_device import open_device

    try:
        return open_device()
    except BackendError as error:
        needs = f"{library.title} builds on the GPU that runs the engine, which cannot be opened"
        hint = "run this on the device; for RTX GPUs, --library tensorrt-rtx --target sm_86."
        if library.builds_ahead:
            needs, hint = "there is no GPU to build for here", "name one: --target sm_86."
        raise BackendError(f"{needs}: {error.message.rstrip('.')}.", hint) from error


def _checked(out: str) -> Path:
    path = Path(out)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "would be in a folder that is not there"
        raise ConfigError(f"-o {out}: {what}.", "give the name of a file.")
    return path


def _print(engine: Engine, out: str, as_json: bool) -> None:
    header = engine.header
    key, size = header.key, len(engine.plan)
    if as_json:
        document: dict[str, Any] = {"engine": out, "bytes": size, "kept": engine.kept}
        report.print_json({**document, **asdict(header)})
        return
    inputs = sum(tensor.role == "input" for tensor in header.tensors)
    made = "from the cache of engines" if engine.kept else "built"
    where = key.device or key.target
    report.console().print(
        f"{out}: {made}, {size / 2**20:.1f} MiB\n"
        f"  {key.graph} of {header.bundle}, {key.width}x{key.height}, {key.precision}, weights "
        f"{key.weights}\n"
        f"  {key.library} {key.library_version} for {where}; {header.layers} layers before fusion, "
        f"{inputs} inputs, {len(header.tensors) - inputs} outputs",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
