"""Figures of the GPUs that plans are judged by: devices.json, which says where each comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.backend import PRECISIONS, Precision

GIB = 2**30
Standing = Literal["documented", "derived", "unverified"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from, and how far it can be trusted."""

    standing: Standing
    source: str


@dataclass(frozen=True)
class DeviceFigures:
    """A GPU. Rates are dense and per second; a fused multiply-add counts as two operations."""

    key: str  # what it is called on the command line
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    clock_hz: float
    bytes_per_second: float
    flops_per_second: Mapping[Precision, float]  # of tensor cores; for "fp32" of CUDA cores
    memory_bytes: int
    usable_bytes: int  # what the operating system leaves
    origins: Mapping[str, Origin]  # of the figures, by their names in devices.json


def device_names() -> tuple[str, ...]:
    """The keys of all devices, the smallest first."""
    return tuple(_document()["devices"])


@cache
def find_device(key: str) -> DeviceFigures:
    """The device that is called ``key``.

    Raises:
        ConfigError: if there is none.
    """
    document = _document()
    if key not in document["devices"]:
        raise ConfigError(
            f"device must be one of {', '.join(device_names())}, got {key!r}.",
            hint="other GPUs can be added to runtime/cuda/devices.json.",
        )
    entry = document["devices"][key]
    figures = {name: figure for name, figure in entry.items() if name != "name"}
    value = {name: figure["value"] for name, figure in figures.items()}
    major, minor = str(float(value["compute_capability"])).split(".")
    # bfloat16 is multiplied as fast as float16.
    rates = {p: value[f"{'fp16' if p == 'bf16' else p}_tflops"] * 1e12 for p in PRECISIONS}
    return DeviceFigures(
        key=key,
        name=entry["name"],
        compute_capability=(int(major), int(minor)),
        multiprocessors=value["multiprocessors"],
        clock_hz=value["clock_mhz"] * 1e6,
        bytes_per_second=value["bandwidth_gb_s"] * 1e9,
        flops_per_second=rates,
        memory_bytes=int(value["memory_gib"] * GIB),
        usable_bytes=int(value["usable_gib"] * GIB),
        origins={
            name: Origin(figure["is"], document["sources"][figure["from"]])
            for name, figure in figures.items()
        },
    )


@cache
def _document() -> dict[str, Any]:
    file = resources.files("edgeadapt.runtime.cuda") / "devices.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
