"""From a bundle to an engine: found in the cache, or built and kept there."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edgeadapt.bundle import WEIGHTS as WEIGHTS_FILE
from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.cuda.device import Device, DeviceInfo
from edgeadapt.runtime.tensorrt import cache
from edgeadapt.runtime.tensorrt.engine_file import (
    FORMAT_VERSION,
    Header,
    Key,
    difference,
    read_engine,
    write_engine,
)
from edgeadapt.runtime.tensorrt.library import Capability, Choices, Library
from edgeadapt.runtime.tensorrt.models import (
    RESTORE,
    Weights,
    engine_model,
    graph_file,
    used_parameters,
)
from edgeadapt.runtime.tensorrt.target import architecture, check_target


@dataclass(frozen=True)
class Request:
    """What an engine is to do; ``size`` is (height, width)."""

    size: tuple[int, int]
    precision: Precision = "fp32"
    weights: Weights = "inputs"
    graph: str = RESTORE


@dataclass(frozen=True)
class Engine:
    """An engine as it was built; ``kept`` if that was earlier."""

    header: Header
    plan: bytes
    kept: bool = False


def engine_key(
    bundle: Bundle, request: Request, library: Library, target: Capability, here: DeviceInfo | None
) -> Key:
    """All that the engine depends on. ``here`` is the GPU in the machine, None if there is none."""
    names = [graph_file(bundle, request.graph)]
    if request.weights != "inputs":
        names.append(WEIGHTS_FILE)
    return Key(
        graph=request.graph,
        height=request.size[0],
        width=request.size[1],
        precision=request.precision,
        weights=request.weights,
        files={name: bundle.manifest.files[name] for name in names},
        library=library.name,
        library_version=library.version,
        target=architecture(target),
        device="" if library.builds_ahead or here is None else here.name,
        edgeadapt=version("edgeadapt"),
    )


def build_engine(
    bundle: Bundle,
    request: Request,
    library: Library,
    target: Capability,
    device: Device | None = None,
) -> Engine:
    """The engine: the one that the cache has, else a new one, which is kept.

    ``device`` is needed by libraries that build on the device only, and is idle meanwhile.

    Raises:
        BackendError: if it cannot be built, here or at all.
        ConfigError: if the request makes no sense for the bundle.
    """
    info = None if device is None else device.info
    check_target(library, target, info)
    key = engine_key(bundle, request, library, target, info)
    found = cache.kept_engine(key)
    if found is not None:
        return Engine(*found, kept=True)
    model = engine_model(bundle, request.graph, request.size, request.precision, request.weights)
    timings = None if info is None else cache.timings_path(library, info)
    choices = Choices(
        capability=target if library.builds_ahead else None,
        tf32=request.precision == "tf32",
        refit=request.weights == "refit",
    )
    measured = b"" if timings is None else cache.read_kept(timings)
    with nullcontext() if device is None else device.entered():
        built = library.build(model.SerializeToString(), choices, measured)
    if timings is not None and built.timing_cache:
        cache.keep(timings, built.timing_cache)
    parameters = () if request.weights == "constant" else used_parameters(bundle, model)
    name = bundle.path.resolve().name
    header = Header(FORMAT_VERSION, name, key, built.layers, parameters, built.tensors)
    _keep(header, built.plan)
    return Engine(header, built.plan)


def read_for(path: Path, wanted: Key, bundle: Bundle) -> Engine:
    """The engine of a file, which must be of the key ``wanted``.

    Raises:
        BackendError: if it is not, or is damaged; says why, and the command that makes it.
    """
    again = f"`{command(wanted, bundle, path)}`"
    try:
        header, plan = read_engine(path)
    except BackendError as error:
        raise BackendError(error.message, f"build it: {again}") from error
    reason = difference(header.key, wanted)
    if reason:
        raise BackendError(f"{path}: the engine cannot be used here, {reason}.", again)
    return Engine(header, plan, kept=True)


def command(key: Key, bundle: Bundle, path: Path) -> str:
    """What a user calls for an engine of this key."""
    ahead = "" if key.device else f" --target {key.target}"
    return (
        f"edgeadapt build {bundle.path} --size {key.width}x{key.height} --graph {key.graph} "
        f"--precision {key.precision} --weights {key.weights} --library {key.library}{ahead} "
        f"-o {path}"
    )


def _keep(header: Header, plan: bytes) -> None:
    path = cache.engine_path(header.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_engine(path, header, plan)
    except OSError:
        return  # it is built again the next time
