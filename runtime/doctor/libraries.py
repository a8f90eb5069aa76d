"""Installed libraries with GPU code: where they are, which version, and what they hold."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.runtime.doctor.fatbin import Held, read_file, split
from edgeadapt.runtime.doctor.system import System

READ_SECONDS = 0.8  # for all files together
_READERS = 4
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Kind:
    """A library that may be installed, as one file or as several."""

    name: str
    patterns: tuple[str, ...]  # file names, in the folders of `loader_folders`
    inside: tuple[str, ...] = ()  # the same below a folder of Python packages


KINDS = (
    Kind("cuDNN", ("libcudnn*.so.*",), ("nvidia/cudnn/lib/libcudnn*.so.*",)),
    Kind("TensorRT", ("libnvinfer.so.*",), ("tensorrt_libs/libnvinfer.so.*",)),
    Kind("ONNX Runtime", (), ("onnxruntime/capi/libonnxruntime_providers_cuda.so",)),
    Kind("PyTorch", (), ("torch/lib/libtorch_cuda*.so",)),
    Kind("CUDA runtime", ("libcudart.so.*",),
         ("nvidia/cuda_runtime/lib/libcudart.so.*", "nvidia/cu1[0-9]/lib/libcudart.so.*")),
)  # fmt: skip


@dataclass(frozen=True)
class Installed:
    """One file."""

    kind: str
    path: Path
    version: tuple[int, ...]  # as its name says; may be the first number only
    in_python: bool  # of a Python package, not of the system


def find_libraries(system: System, kind: str) -> list[Installed]:
    """The files of a kind; one that has several names counts once, under its longest."""
    (wanted,) = (one for one in KINDS if one.name == kind)
    best: dict[Path, Installed] = {}
    for path, in_python in _candidates(system, wanted):
        try:
            real = path.resolve()
            if not real.is_file():
                continue
        except OSError:
            continue
        version = max(_version(path.name), _version(real.name), key=len)
        known = best.get(real)
        if known is None or len(version) > len(known.version):
            best[real] = Installed(kind, path if known is None else known.path, version, in_python)
    return list(best.values())


def _candidates(system: System, kind: Kind) -> Iterator[tuple[Path, bool]]:
    for folder in loader_folders(system):
        for pattern in kind.patterns:
            yield from ((path, False) for path in sorted(folder.glob(pattern)))
    for site in dict.fromkeys(system.site):
        for pattern in kind.inside:
            yield from ((path, True) for path in sorted(site.glob(pattern)))


def loader_folders(system: System) -> list[Path]:
    """Where the loader of this system finds libraries."""
    given = [system.path(text) for text in
             system.environ.get("LD_LIBRARY_PATH", "").split(":") if text]  # fmt: skip
    usual = system.glob(
        f"usr/lib/{system.machine}-linux-gnu",
        f"usr/lib/{system.machine}-linux-gnu/nvidia",
        f"usr/lib/{system.machine}-linux-gnu/tegra",
        "usr/lib64",
        "usr/local/cuda*/lib64",
        "usr/local/cuda*/targets/*/lib",
    )
    return list(dict.fromkeys([*given, *usual]))


def _version(name: str) -> tuple[int, ...]:
    found = re.search(r"\.so\.(\d+(?:\.\d+)*)$", name)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def version_text(version: Sequence[int]) -> str:
    """As "9.20.0"."""
    return ".".join(str(part) for part in version)


def read_libraries(system: System, found: Sequence[Installed]) -> list[tuple[Installed, Held]]:
    """What files hold, within `READ_SECONDS`; complete readings are kept for the next time."""
    kept = _load(system)
    deadline = time.monotonic() + READ_SECONDS

    def one(library: Installed) -> tuple[Installed, Held, str]:
        try:
            status = library.path.stat()
            key = f"{library.path.resolve()} {status.st_size} {status.st_mtime_ns}"
            held = kept[key] if key in kept else read_file(library.path, deadline)
        except (OSError, ValueError):
            return library, Held(complete=False), ""
        return library, held, key

    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(one, found))
    fresh = {key: held for _, held, key in read if key and held.complete}
    if fresh.keys() - kept.keys():
        _save(system, {**kept, **fresh})
    return [(library, held) for library, held, _ in read]


def held_document(held: Held) -> dict[str, Any]:
    """For JSON."""
    return {
        "sass": dict(held.sass),
        "ptx": dict(held.ptx),
        "ptx_version": list(held.language),
        "complete": held.complete,
    }


def _load(system: System) -> dict[str, Held]:
    if system.cache is None:
        return {}
    try:
        document = json.loads(system.cache.read_text(encoding="utf-8"))
        if document["version"] != _CACHE_VERSION:
            return {}
        return {str(key): _held(row) for key, row in document["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}  # is written anew


def _held(row: Any) -> Held:
    """What `held_document` made; fails on anything else."""
    sass, ptx = (
        Counter({str(name): int(count) for name, count in row[kind].items()})
        for kind in ("sass", "ptx")
    )
    for name in (*sass, *ptx):
        split(name)
    return Held(sass, ptx, (int(row["ptx_version"][0]), int(row["ptx_version"][1])))


def _save(system: System, files: dict[str, Held]) -> None:
    if system.cache is None:
        return
    document = {key: held_document(held) for key, held in list(files.items())[-200:]}
    text = json.dumps({"version": _CACHE_VERSION, "files": document})
    fresh = system.cache.with_suffix(".new")
    try:
        system.cache.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(system.cache)
    except OSError:
        return  # is read again the next time
