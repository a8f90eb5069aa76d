"""What is written for other programs, held to checks that share nothing with what writes it."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.profile.export import (
    layers_document,
    layers_path,
    profile_document,
    times_document,
    write_json,
)
from edgeadapt.runtime.profile.parts import Operand
from edgeadapt.runtime.profile.roofline import Analysis, analyse
from edgeadapt.runtime.profile.trace import trace_document
from support.profiles import PEAKS, part, profile, run

SECONDS = st.floats(1e-7, 10.0)


def analyses() -> dict[str, Analysis]:
    first = part("conv 3->8 3x3 @ 6x8 #0", [0.2, 0.4, 0.3], flops=10**10)
    second = part("add #1", [0.1, 0.1, 0.2], kind="pointwise", group="pointwise", flops=None)
    step = profile([first, second], [0.4, 0.6, 0.5])
    return {"step": analyse(step, PEAKS), "restore": analyse(profile([first], [0.3] * 3), PEAKS)}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_profile(document: Any) -> None:
    """The rules of NVIDIA's trt-perf-analysis for a profile."""
    assert isinstance(document, list)
    head, *records = document
    assert set(head) == {"count"}
    assert isinstance(head["count"], int)
    assert head["count"] > 0
    assert records
    names = [record["name"] for record in records]
    assert all(isinstance(name, str) and name for name in names)
    assert len(set(names)) == len(names)
    for record in records:
        for field in ("timeMs", "averageMs", "medianMs", "percentage"):
            assert is_number(record[field]), field
        assert record["timeMs"] == pytest.approx(head["count"] * record["averageMs"])
    assert sum(record["percentage"] for record in records) == pytest.approx(100)


def check_layers(document: Any) -> None:
    """The same for layers: tensors are well-formed, each has one producer, there is no cycle."""
    assert isinstance(document, list)
    produced: set[str] = set()
    read_before: set[str] = set()
    for layer in document:
        assert isinstance(layer["Name"], str)
        assert isinstance(layer["LayerType"], str)
        for tensor in [*layer["Inputs"], *layer["Outputs"]]:
            assert isinstance(tensor["Name"], str)
            assert all(is_number(size) for size in tensor["Dimensions"])
            assert isinstance(tensor["Format/Datatype"], str)
        read_before |= {tensor["Name"] for tensor in layer["Inputs"]} - produced
        for tensor in layer["Outputs"]:
            assert tensor["Name"] not in produced | read_before
            produced.add(tensor["Name"])


def parsed(document: object) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


def test_the_profile_is_what_nvidias_viewer_reads() -> None:
    document = parsed(profile_document(analyses()))
    check_profile(document)
    first = document[1]
    assert document[0] == {"count": 3}
    assert first["name"] == "step: conv 3->8 3x3 @ 6x8 #0"
    assert first["timeMs"] == pytest.approx(900)
    assert (first["averageMs"], first["medianMs"]) == (pytest.approx(300), pytest.approx(300))
    assert first["percentage"] == pytest.approx(100 * 0.9 / 2.2)
    assert first["rooflineMs"] == pytest.approx(100)  # 10 GFLOP at 100 GFLOP/s
    assert "rooflineMs" not in document[2]  # of unknown work there is none


def test_the_layers_have_the_profiles_names() -> None:
    layers = parsed(layers_document(analyses()))
    check_layers(layers)
    records = profile_document(analyses())[1:]
    assert [layer["Name"] for layer in layers] == [record["name"] for record in records]
    assert layers[0]["Inputs"][0]["Dimensions"] == [1, 3, 6, 8]


def test_the_layers_read_what_others_wrote() -> None:
    image, half, y = Operand("image", (1, 3, 6, 8), "f32"), Operand("t", (2,), "bf16"), "y"
    first = part("a #0", [0.1], reads=(image,), writes=(half,))
    second = part("b #1", [0.1], reads=(half, image), writes=(Operand(y, (4,), "f32"),))
    quiet = part("step of Adam by numpy", [0.1])
    found = {"step": analyse(profile([first, second, quiet], [0.3]), PEAKS)}
    layers = parsed(layers_document(found))
    check_layers(layers)
    assert layers[0]["Outputs"] == [
        {"Name": "step: t", "Dimensions": [2], "Format/Datatype": "Row major linear BFloat16"}
    ]
    assert [tensor["Name"] for tensor in layers[1]["Inputs"]] == ["step: t", "step: image"]
    assert (layers[2]["Inputs"], layers[2]["Outputs"]) == ([], [])


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=20))
def test_any_times_make_a_sound_profile(times: list[tuple[float, float]]) -> None:
    parts = [part(f"op #{number}", seconds) for number, seconds in enumerate(times)]
    found = {"restore": analyse(profile(parts, [1.0, 2.0]), PEAKS)}
    check_profile(parsed(profile_document(found)))
    check_layers(parsed(layers_document(found)))
    check_trace(parsed(trace_document([run(0.0, 0.1, 0.2, 0.1)], found)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("profile_a.json", "layers_a.json"), ("profile.json", "layers.json"),
     ("mine.json", "layers_mine.json")],
)  # fmt: skip
def test_the_layers_lie_beside_the_profile(name: str, expected: str) -> None:
    assert layers_path(Path("x") / name) == Path("x") / expected


def test_times_have_the_fields_of_trtexec() -> None:
    runs = [run(0.0, 0.1, 1.0, 0.2, enqueue=0.3), run(2.0, 0.1, 1.0, 0.2)]
    first, second = parsed(times_document(runs))
    ways = ("Enq", "H2d", "Compute", "D2h")
    ends = {f"{end}{way}Ms" for way in ways for end in ("start", "end")}
    assert set(first) == ends | {"h2dMs", "computeMs", "d2hMs", "latencyMs"}
    assert first["endEnqMs"] - first["startEnqMs"] == pytest.approx(300)
    assert second["endEnqMs"] == second["startEnqMs"]
    assert (second["startH2dMs"], second["endH2dMs"]) == pytest.approx((2000, 2100))
    assert (second["startComputeMs"], second["endComputeMs"]) == pytest.approx((2110, 3110))
    assert (second["startD2hMs"], second["endD2hMs"]) == pytest.approx((3120, 3320))
    assert second["latencyMs"] == pytest.approx(1320)


def check_trace(document: Any) -> None:
    """The object form of the trace event format: complete events on named tracks, none overlaps."""
    assert set(document) == {"traceEvents", "displayTimeUnit"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    named: set[tuple[int, int]] = set()
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str)
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            named.add(track)
            continue
        assert event["ph"] == "X"
        assert is_number(event["ts"])
        assert is_number(event["dur"])
        assert event["dur"] >= 0
        assert isinstance(event["args"], dict)
        tracks.setdefault(track, []).append((event["ts"], event["ts"] + event["dur"]))
    assert set(tracks) <= named
    for events in tracks.values():
        events.sort()
        for (_, end), (begin, _) in pairwise(events):
            assert begin >= end - 1e-3  # of a microsecond


def test_the_trace_shows_runs_phases_and_operations() -> None:
    runs = [run(0.0, 0.1, 1.0, 0.2), run(2.0, 0.1, 1.0, 0.2)]
    document = parsed(trace_document(runs, analyses()))
    check_trace(document)
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert [e["name"] for e in events[:4]] == ["run 0", "image in", "compute", "image out"]
    assert (events[2]["ts"], events[2]["dur"]) == pytest.approx((0.11e6, 1e6))
    operations = [event for event in events if event["cat"] in ("forward", "pointwise")]
    assert len(operations) == 3
    assert operations[0]["ts"] == pytest.approx(3.32e6)  # behind the runs
    assert operations[0]["dur"] == pytest.approx(0.3e6)  # the median run's is the third
    assert operations[0]["args"]["flops"] == 10**10
    # The restoration's track begins where the step, of 0.5 s, has ended.
    assert operations[2]["ts"] == pytest.approx(3.32e6 + 0.5e6)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_json(tmp_path / "missing" / "profile.json", [])
    assert list(tmp_path.iterdir()) == []
