"""Profiles as files that other programs read: trtexec's profile, layers and times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from edgeadapt.errors import ConfigError
from edgeadapt.files import atomic_file
from edgeadapt.runtime.profile.parts import Operand, Part, Profile
from edgeadapt.runtime.profile.roofline import Analysis, least_seconds
from edgeadapt.runtime.profile.timing import Phase, PhaseKind, Run

# What the session does for an image, by a name: "step", "restore".
Analyses = Mapping[str, Analysis]
_TYPES = {"f32": "FP32", "bf16": "BFloat16", "f16": "FP16", "bool": "Bool"}  # as TensorRT has it


def write_json(path: Path, document: object) -> None:
    """Write a document; the file appears whole or not at all.

    Raises:
        ConfigError: if it cannot be written there.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}).", "give another path.") from None


def profile_document(analyses: Analyses) -> list[dict[str, Any]]:
    """What `trtexec --exportProfile` writes: the number of runs, then the time of each layer.

    ``timeMs`` is the sum over all runs. Fields that are not trtexec's say what the roofline is
    made of. One step and one restoration are in it, whatever K is.
    """
    records: list[dict[str, Any]] = []
    for label, found in analyses.items():
        records += [_record(label, part, found) for part in found.profile.parts]
    total = sum(record["timeMs"] for record in records)
    for record in records:
        record["percentage"] = 100 * record["timeMs"] / total if total else 0.0
    counts = {len(found.profile.whole) for found in analyses.values()}
    assert len(counts) == 1, "all are repeated as often"
    return [{"count": counts.pop()}, *records]


def layers_document(analyses: Analyses) -> list[dict[str, Any]]:
    """What `trtexec --exportLayerInfo` writes, one layer for each record of the profile.

    Where an engine does not say which tensors it reads and writes, each operation reads what the
    one before it wrote, as it ran.
    """
    layers: list[dict[str, Any]] = []
    for label, found in analyses.items():
        profile = found.profile
        known = any(part.writes for part in profile.parts)
        shape = (1, 3, profile.height, profile.width)
        before = _tensor(label, Operand("image", shape, "f32"))
        for part in profile.parts:
            reads = [_tensor(label, operand) for operand in part.reads]
            writes = [_tensor(label, operand) for operand in part.writes]
            if not known:
                after = _tensor(label, Operand(f"{part.name}.y", (), "f32"))
                reads, writes, before = [before], [after], after
            layers.append(
                {
                    "Name": f"{label}: {part.name}",
                    "LayerType": part.kind,
                    "Inputs": reads,
                    "Outputs": writes,
                    "TacticName": f"{profile.backend} {part.kind} {part.compute}",
                    "StreamId": 0,
                    "Metadata": f"[ONNX Graph: {profile.graph}] group: {part.group}",
                }
            )
    return layers


def layers_path(profile: Path) -> Path:
    """Where the layers of a profile go: layers_x.json beside profile_x.json."""
    name = profile.name
    if name.startswith("profile"):
        return profile.with_name("layers" + name.removeprefix("profile"))
    return profile.with_name(f"layers_{name}")


def times_document(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What `trtexec --exportTimes` writes, a record for each run.

    Begins and ends are of the first way in, of everything that is computed and of the last way out;
    an image goes in twice where it is adapted to, and ``h2dMs`` is the sum.
    """
    return [_times(run) for run in runs]


def _record(label: str, part: Part, found: Analysis) -> dict[str, Any]:
    seconds = part.seconds
    middle = median(seconds)
    record: dict[str, Any] = {
        "name": f"{label}: {part.name}",
        "timeMs": 1e3 * sum(seconds),
        "averageMs": 1e3 * sum(seconds) / len(seconds),
        "medianMs": 1e3 * middle,
        "percentage": 0.0,
        "group": part.group,
        "flops": part.flops,
        "movedBytes": part.moved_bytes,
        "precision": part.compute,
    }
    if found.peaks is not None and (least := least_seconds(part, found.peaks)) is not None:
        record["rooflineMs"] = 1e3 * least
    return record


def _tensor(label: str, operand: Operand) -> dict[str, Any]:
    return {
        "Name": f"{label}: {operand.name}",
        "Dimensions": list(operand.shape),
        "Format/Datatype": f"Row major linear {_TYPES[operand.dtype]}",
    }


def _times(run: Run) -> dict[str, Any]:
    def of(kind: PhaseKind) -> list[Phase]:
        return [phase for phase in run.phases if phase.kind == kind]

    put, compute, get = of("in"), of("compute"), of("out")
    return {
        "startEnqMs": 1e3 * compute[0].begin,
        "endEnqMs": 1e3 * (compute[0].begin + (run.enqueue or 0.0)),
        "startH2dMs": 1e3 * put[0].begin,
        "endH2dMs": 1e3 * put[0].end,
        "startComputeMs": 1e3 * compute[0].begin,
        "endComputeMs": 1e3 * compute[-1].end,
        "startD2hMs": 1e3 * get[-1].begin,
        "endD2hMs": 1e3 * get[-1].end,
        "h2dMs": 1e3 * run.seconds("in"),
        "computeMs": 1e3 * run.seconds("compute"),
        "d2hMs": 1e3 * run.seconds("out"),
        "latencyMs": 1e3 * run.latency,
    }


def operations_document(found: Analysis) -> dict[str, Any]:
    """An analysis for JSON; times in milliseconds."""
    profile = found.profile
    least = found.total.least_seconds
    return {
        "graph": profile.graph,
        "whole_ms": 1e3 * found.whole,
        "plain_ms": 1e3 * found.plain,
        "parts_ms": 1e3 * found.total.seconds,
        "profiling_overhead": profile.overhead,
        "roofline_ms": None if least is None else 1e3 * least,
        "repetitions": len(profile.whole),
        "groups": [_group(found, index) for index in range(len(found.groups))],
        "operations": [_operation(part, found.profile) for part in found.profile.parts],
    }


def _group(found: Analysis, index: int) -> dict[str, Any]:
    row = found.groups[index]
    return {
        "group": row.name,
        "operations": row.parts,
        "ms": 1e3 * row.seconds,
        "share": row.share,
        "flops": row.flops,
        "moved_bytes": row.moved_bytes,
        "roofline": row.roofline,
    }


def _operation(part: Part, profile: Profile) -> dict[str, Any]:
    names = ("name", "kind", "group", "flops", "moved_bytes", "compute", "again")
    return {
        **{name: getattr(part, name) for name in names},
        "ms": 1e3 * part.seconds[profile.median],
    }
