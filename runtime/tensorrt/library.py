"""TensorRT and TensorRT-RTX: which of the two is here, what it can do, and an engine made by it.

All that knows their API is here and in `execution.py`. One path serves TensorRT 10.3 to 11.4 (the
module `tensorrt`) and TensorRT-RTX (`tensorrt_rtx`); where they differ, what is there is looked at,
not a version:

| | TensorRT 10 | TensorRT 11 | TensorRT-RTX |
|---|---|---|---|
| strongly typed networks | a flag | always | always |
| builds for | the GPU in the machine | the same | a named architecture, without a GPU |
| timing cache | yes | yes | none: kernels are compiled on the device, and cached there |
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from edgeadapt.errors import BackendError, one_line
from edgeadapt.runtime.tensorrt.interrupt import interrupt_kept

Name = Literal["tensorrt", "tensorrt-rtx"]
NAMES: tuple[Name, ...] = get_args(Name)
TITLES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
OLDEST = (10, 3)  # of TensorRT: what JetPack 6.1 has
Capability = tuple[int, int]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that an engine takes or gives."""

    name: str
    role: str  # "input" or "output"
    shape: tuple[int, ...]
    dtype: str  # "float32", "float16", ...


@dataclass(frozen=True)
class Choices:
    """What a builder is told.

    ``capability`` None: the GPU in the machine. ``tf32``: products of float32 may be rounded to 10
    bits. ``refit``: weights can be exchanged later.
    """

    capability: Capability | None = None
    tf32: bool = False
    refit: bool = False


@dataclass(frozen=True)
class Built:
    """What a builder made. ``layers`` counts those of the network before anything was fused."""

    plan: bytes
    layers: int
    tensors: tuple[TensorInfo, ...]
    timing_cache: bytes


class Library:
    """One of the two, imported; ``module`` is it."""

    def __init__(self, name: Name, module: Any) -> None:
        self.name, self.module = name, module
        self.version = str(module.__version__)

    @property
    def title(self) -> str:
        """Name and version for messages."""
        return f"{TITLES[self.name]} {self.version}"

    @property
    def builds_ahead(self) -> bool:
        """Whether it builds for architectures that are not in the machine."""
        return hasattr(self.module, "ComputeCapability")

    @property
    def caches_timings(self) -> bool:
        """Whether a builder measures kernels, and can keep what it measured."""
        return not self.builds_ahead

    def architectures(self) -> tuple[Capability, ...]:
        """What it builds for ahead of time; () if it does not."""
        if not self.builds_ahead:
            return ()
        names = self.module.ComputeCapability.__members__
        numbers = [name.removeprefix("SM") for name in names]
        return tuple(sorted((int(n[:-1]), int(n[-1])) for n in numbers if n.isdecimal()))

    def build(self, model: bytes, choices: Choices, timing_cache: bytes = b"") -> Built:
        """An engine of an ONNX model that is complete and whose sizes are fixed.

        Precisions are those that the model says. The GPU's context must be current, unless
        ``choices`` names an architecture.

        Raises:
            BackendError: with what the parser or the builder said.
            KeyboardInterrupt: after the library returned, if it came in the meantime.
        """
        log = make_log(self.module)
        builder = self.module.Builder(log)
        network = builder.create_network(self._network_flags())
        with interrupt_kept():
            self._parse(network, model, log)
            config = builder.create_builder_config()
            cache = self._configure(config, choices, timing_cache)
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refused(log, choices)
        kept = bytes(memoryview(cache.serialize())) if cache is not None else b""
        tensors = tuple(_network_tensors(network))
        return Built(bytes(memoryview(plan)), int(network.num_layers), tensors, kept)

    def _network_flags(self) -> int:
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def _parse(self, network: Any, model: bytes, log: Any) -> None:
        parser = self.module.OnnxParser(network, log)
        if parser.parse(model):
            return
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        text = errors[0] if errors else log.reason()
        raise BackendError(
            f"the ONNX parser of {self.title} refuses the graph ({_short(text)}).",
            "the backends cuda, native and onnxruntime run it without TensorRT.",
        )

    def _configure(self, config: Any, choices: Choices, timing_cache: bytes) -> Any:
        """Set ``config``; the timing cache that it writes to, or None."""
        flags = self.module.BuilderFlag
        if not choices.tf32:
            config.clear_flag(flags.TF32)  # it is set unless one says so
        if choices.refit:
            config.set_flag(flags.REFIT)
        if choices.capability is not None:
            major, minor = choices.capability
            target = getattr(self.module.ComputeCapability, f"SM{major}{minor}")
            config.num_compute_capabilities = 1
            config.set_compute_capability(target, 0)
        if not self.caches_timings:
            return None
        cache = config.create_timing_cache(timing_cache)
        if not config.set_timing_cache(cache, False):  # another device's, or another version's
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def _refused(self, log: Any, choices: Choices) -> BackendError:
        hint = "smaller images or --precision fp32 may do; cuda runs the bundle without TensorRT."
        if choices.refit:
            hint = (
                "an engine with exchangeable weights can be built on a GPU only, and not of every "
                "network; --weights inputs needs no exchange."
            )
        return BackendError(f"{self.title} builds no engine ({_short(log.reason())}).", hint)


def find_library(wanted: str = "") -> Library:
    """TensorRT, else TensorRT-RTX; or the one that is ``wanted``.

    Raises:
        BackendError: if it is not installed, does not load, or is too old.
    """
    missing: list[str] = []
    for name in NAMES:
        if wanted not in ("", name):
            continue
        try:
            return _checked(Library(name, _import(name)))
        except ModuleNotFoundError:
            missing.append(TITLES[name])
    raise BackendError(
        f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed.",
        "JetPack brings TensorRT (`apt install python3-libnvinfer`); elsewhere "
        "`pip install tensorrt` or `pip install tensorrt-rtx`.",
    )


def make_log(module: Any) -> Any:
    """A logger that says nothing and keeps the errors: ``reason()`` is the first of them."""

    class Log(module.ILogger):  # type: ignore[misc]  # its base is known when it is imported
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def reason(self) -> str:
            return self.errors[0] if self.errors else "it does not say why"

    return Log()


def dtype_name(dtype: Any) -> str:
    """A type of the library as numpy calls it."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return names.get(dtype.name, str(dtype.name).lower())


def _import(name: Name) -> Any:
    module = name.replace("-", "_")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise
        reason = one_line(error)
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are opened when imported
        reason = one_line(error)
    raise BackendError(
        f"{TITLES[name]} is installed and cannot be loaded ({reason}).",
        "`edgeadapt doctor` says which of its libraries are missing.",
    )


def _checked(library: Library) -> Library:
    numbers = tuple(int(part) for part in library.version.split(".")[:2] if part.isdecimal())
    if library.name == "tensorrt" and numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(
            f"{library.title} is too old, {oldest} is needed.",
            "JetPack 6.1 and later bring one that is new enough.",
        )
    return library


def _network_tensors(network: Any) -> list[TensorInfo]:
    groups = (("input", network.num_inputs), ("output", network.num_outputs))
    return [
        TensorInfo(tensor.name, role, tuple(tensor.shape), dtype_name(tensor.dtype))
        for role, count in groups
        for tensor in (getattr(network, f"get_{role}")(index) for index in range(count))
    ]


def _short(text: str) -> str:
    return " ".join(text.split())[:400]
