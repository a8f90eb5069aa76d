"""ONNX Runtime's providers for GPUs: whether they can run here, and what they are asked for.

A provider of the package from PyPI has machine code for some GPUs only; on others it opens, and
fails at the first kernel. So its library is read before it is used. What it is asked for:

* `EDGEADAPT_ORT_CUDA_GRAPH=1`: from the second run on a graph of launches is replayed. The library
  refuses it where a node runs on the CPU.
* TensorRT's engines and timings are kept in edgeadapt's folder of caches.

No GPU has run this yet.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.library import cache_folder
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.doctor.coverage import Coverage, coverage
from edgeadapt.runtime.doctor.fatbin import Held, read_file
from edgeadapt.runtime.doctor.libraries import find_libraries
from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.doctor.target import Target, find_target

Kind = Literal["cpu", "cuda", "tensorrt"]

NAMES: Mapping[Kind, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_CPU = "use the backend onnxruntime, which is the CPU"


@dataclass(frozen=True)
class Asked:
    """What a session of ONNX Runtime is opened with."""

    kind: Kind
    precision: Precision
    cache: str = ""  # a folder for TensorRT's engines
    stream: int = 0  # address of a CUDA stream on which everything is enqueued; 0: the library's
    cuda_graph: bool = False

    @property
    def device(self) -> str:
        """Where inputs and outputs lie, in the library's words."""
        return "cpu" if self.kind == "cpu" else "cuda"

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """As `InferenceSession` takes them: the one asked for, then what runs the rest."""
        found: list[tuple[str, dict[str, str]]] = [(NAMES["cpu"], {})]
        if self.kind != "cpu":
            found.insert(0, (NAMES["cuda"], self._cuda()))
        if self.kind == "tensorrt":
            found.insert(0, (NAMES["tensorrt"], self._tensorrt()))
        return found

    def _cuda(self) -> dict[str, str]:
        options = {
            "device_id": "0",
            # Else it grows in powers of two, which a Jetson's shared memory has no room for.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # others measure anew for every size
            "use_tf32": "1" if self.precision == "tf32" else "0",
            **self._stream(),
        }
        # With TensorRT the rest is a few nodes between engines, which record on their own.
        if self.cuda_graph and self.kind == "cuda":
            options["enable_cuda_graph"] = "1"
        return options

    def _tensorrt(self) -> dict[str, str]:
        # Nothing about precision: with none of its flags the network is strongly typed, and the
        # graph's casts are kept to.
        options = {"device_id": "0", **self._stream()}
        if self.cache:
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": self.cache,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": self.cache,
            }
        if self.cuda_graph:
            options["trt_cuda_graph_enable"] = "1"
        return options

    def _stream(self) -> dict[str, str]:
        if not self.stream:
            return {}
        return {"has_user_compute_stream": "1", "user_compute_stream": str(self.stream)}


def ask(kind: Kind, precision: Precision, bundle: Bundle, library: Any, stream: int = 0) -> Asked:
    """What to open ``library``, the module onnxruntime, with, after finding that it can run.

    Raises:
        BackendError: if the provider cannot compute in ``precision``, is not in the library, or has
            no code for the GPU.
    """
    if kind == "cpu":
        _check_cpu(precision)
        return Asked(kind, precision)
    target = _check_gpu(kind, library, System())
    cache = _cache(bundle, precision, library, target) if kind == "tensorrt" else ""
    graph = os.environ.get("EDGEADAPT_ORT_CUDA_GRAPH", "0") not in ("", "0")
    return Asked(kind, precision, cache, stream, graph)


def check_opened(session: Any, kind: Kind) -> None:
    """Refuse a session that has gone on with less than it was asked for, as the library lets it.

    Raises:
        BackendError: naming the providers it has.
    """
    found = session.get_providers()
    if NAMES[kind] not in found:
        raise BackendError(
            f"ONNX Runtime could not load its {NAMES[kind]} and went on with {', '.join(found)}.",
            "`edgeadapt doctor` says which library it lacks; or " + _CPU + ".",
        )


def _check_cpu(precision: Precision) -> None:
    if precision in ("bf16", "tf32"):
        raise BackendError(
            f"ONNX Runtime's CPU provider has no convolutions in {precision}.",
            "use fp32 or fp16, or the backend native.",
        )


def _check_gpu(kind: Kind, library: Any, system: System) -> Target:
    there = library.get_available_providers()
    if NAMES[kind] not in there:
        raise BackendError(
            f"ONNX Runtime {library.__version__} was installed without {NAMES[kind]} "
            f"(it has {', '.join(there)}).",
            "`pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`; on a Jetson build it "
            "from source.",
        )
    target = find_target(system)
    if target is None or target.capability is None:
        what = "finds no NVIDIA GPU" if target is None else "cannot tell which GPU this is"
        raise BackendError(
            f"ONNX Runtime's {NAMES[kind]}: this machine {what}.",
            "`edgeadapt doctor` says what the driver lacks; or " + _CPU + ".",
        )
    number = target.architecture.removeprefix("sm_")
    own = Path(library.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    _check_code(own, target, f"build it from source with CMAKE_CUDA_ARCHITECTURES={number}")
    if kind == "tensorrt":
        for file in find_libraries(system, "TensorRT"):
            _check_code(file.path, target, "install the TensorRT of this machine's JetPack or GPU")
    return target


def _check_code(file: Path, target: Target, fix: str) -> None:
    assert target.capability is not None
    try:
        held = read_file(file)
    except OSError as error:
        raise BackendError(f"{file} cannot be read ({error}).", "install it again.") from error
    # TensorRT's library may keep its code elsewhere: none at all says nothing about the GPU.
    good: tuple[Coverage, ...] = ("sass", "ptx")
    if _has_code(held) and coverage(held, target.capability) not in good:
        raise BackendError(
            f"{file} has no code for this GPU, {target.name} ({target.architecture}): it holds "
            f"{held.text()}.",
            f"{fix}, or {_CPU}.",
        )


def _has_code(held: Held) -> bool:
    return bool(held) and held.complete


def _cache(bundle: Bundle, precision: Precision, library: Any, target: Target) -> str:
    """A folder for the engines of these weights: the library's own names leave weights out."""
    key = {
        "bundle": dict(bundle.manifest.files),
        "precision": precision,
        "onnxruntime": library.__version__,
        "device": f"{target.name} {target.architecture}",
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "onnxruntime" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"{folder} cannot be made ({error}).", "set EDGEADAPT_CACHE to a folder that can."
        ) from error
    return str(folder)
