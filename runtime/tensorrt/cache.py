"""What building leaves behind for the next time, in the user's folder of caches.

    tensorrt/engines/KEY.engine   engines that were built, by all that they depend on
    tensorrt/timings/KEY          what TensorRT measured of its kernels, by device and version
    tensorrt/kernels/KEY          what TensorRT-RTX compiled for a device, by engine and device

A file that cannot be read is as if it were not there; one that cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from edgeadapt.errors import BackendError
from edgeadapt.files import atomic_file
from edgeadapt.kernels.cuda.library import cache_folder
from edgeadapt.runtime.cuda.device import DeviceInfo
from edgeadapt.runtime.tensorrt.engine_file import Header, Key, difference, read_engine
from edgeadapt.runtime.tensorrt.library import Library


def engine_path(key: Key) -> Path:
    """Where an engine of this key is kept."""
    return _folder("engines") / f"{_digest(asdict(key))}.engine"


def kept_engine(key: Key) -> tuple[Header, bytes] | None:
    """The engine of this key, if it is kept and sound."""
    try:
        header, plan = read_engine(engine_path(key))
    except (BackendError, OSError):
        return None
    return None if difference(header.key, key) else (header, plan)


def timings_path(library: Library, info: DeviceInfo) -> Path:
    """Where the times of a device's kernels are kept."""
    return _folder("timings") / _digest({**_library(library), **_device(info)})


def kernels_path(library: Library, info: DeviceInfo, plan: bytes) -> Path:
    """Where the kernels are kept that were compiled for an engine on a device."""
    engine = {"engine": hashlib.sha256(plan).hexdigest()}
    return _folder("kernels") / _digest({**_library(library), **_device(info), **engine})


def read_kept(path: Path) -> bytes:
    """The bytes of a file; none if there is no such file, or it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def keep(path: Path, data: bytes) -> None:
    """Write a file of the cache; who reads at the same time sees all of it, or nothing."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)


def _folder(name: str) -> Path:
    return cache_folder() / "tensorrt" / name


def _library(library: Library) -> Mapping[str, str]:
    return {"library": library.name, "version": library.version}


def _device(info: DeviceInfo) -> Mapping[str, str]:
    return {
        "device": f"{info.name}, {info.architecture}, {info.multiprocessors} multiprocessors",
        "driver": ".".join(map(str, info.driver)),
    }


def _digest(document: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
