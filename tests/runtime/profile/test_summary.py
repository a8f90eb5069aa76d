from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from edgeadapt.runtime.profile.energy import Energy
from edgeadapt.runtime.profile.summary import print_summary, summarise, summary_document
from support.profiles import measurement, run

PERCENTS = (90.0, 99.0)


def printed(runs: list, average: int = 2, energy: Energy | None = None) -> str:
    out = io.StringIO()
    found = summarise(measurement(runs), PERCENTS)
    print_summary(found, runs, energy, average, Console(file=out, width=400, highlight=False))
    return out.getvalue()


def test_latency_is_the_whole_way_and_throughput_counts_the_pauses() -> None:
    runs = [run(0.0, 0.1, 1.0, 0.2), run(2.0, 0.1, 1.0, 0.2), run(4.0, 0.1, 2.0, 0.2)]
    found = summarise(measurement(runs), PERCENTS)
    assert found.walltime == pytest.approx(4.0 + 2.3 + 0.02)
    assert found.images_per_second == pytest.approx(3 / found.walltime)
    assert found.latency.median == pytest.approx(1.32)  # 1.3 and two tenths of 0.1
    assert found.compute.percentiles == ((90.0, pytest.approx(2.0)), (99.0, pytest.approx(2.0)))
    assert (found.runs, found.warm_ups) == (3, 3)


def test_an_engine_without_a_device_has_no_enqueue_time_and_no_transfers() -> None:
    text = printed([run(float(i), 0.01, 0.5, 0.02) for i in range(5)])
    assert "=== Performance summary ===" in text
    assert "Throughput: " in text
    assert " images/s" in text
    assert "Enqueue Time: none" in text
    assert "Input Conversion (no H2D): min = 10 ms" in text
    assert "Output Conversion (no D2H): min = 20 ms" in text
    assert "percentile(90%) = 500 ms, percentile(99%) = 500 ms" in text
    assert "GPU" not in text
    assert "no power sensor" in text
    assert text.count("compute 500 ms") == 2  # averages of two, the fifth is left over
    assert "*" not in text


def test_an_engine_with_a_device_has_the_names_of_trtexec() -> None:
    text = printed([run(float(i), 0.01, 0.5, 0.02, enqueue=0.1) for i in range(3)])
    for name in ("Enqueue Time: min = 100 ms", "H2D Latency: min", "D2H Latency: min"):
        assert name in text
    assert "GPU Compute Time: min = 500 ms" in text


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"enqueue": 0.45}, "Enqueue Time"),
        ({"put": 0.6}, "the image's way in"),
        ({"get": 0.6}, "the restoration's way out"),
        ({"taken_back": "the loss rose"}, "3 of 3 adaptations were taken back (the loss rose)"),
    ],
)
def test_what_bounds_the_throughput_is_warned_of(fields: dict, warning: str) -> None:
    usual = {"put": 0.01, "compute": 0.5, "get": 0.01}
    (found,) = summarise(
        measurement([run(float(i), **{**usual, **fields}) for i in range(3)]), ()
    ).warnings
    assert warning in found


@pytest.mark.parametrize(("last", "warned"), [(1.01, False), (1.04, True)])
def test_unstable_times_are_warned_of_above_one_percent(last: float, warned: bool) -> None:
    # Of 1, 1, 1, x the coefficient of variation is about 0.43 (x - 1).
    runs = [run(float(i), 0.01, seconds, 0.01) for i, seconds in enumerate([1, 1, 1, last])]
    warnings = summarise(measurement(runs), ()).warnings
    assert any("unstable" in warning for warning in warnings) == warned


def test_the_document_is_in_milliseconds_and_json() -> None:
    energy = Energy("INA3221, VDD_IN", 10.0, 5.0, 2.5, 40)
    found = summarise(measurement([run(0.0, 0.01, 0.5, 0.02)]), PERCENTS)
    document = json.loads(json.dumps(summary_document(found, energy)))
    assert document["compute_ms"]["percentiles"] == {"90": 500.0, "99": 500.0}
    assert document["enqueue_ms"] is None
    assert document["energy"]["joules_per_image"] == 2.5
    assert "2.5 J/image, 5 W" in printed([run(0.0, 0.01, 0.5, 0.02)], energy=energy)
