from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgeadapt.runtime.profile.parts import GROUPS
from edgeadapt.runtime.profile.roofline import analyse, least_seconds
from edgeadapt.runtime.profile.table import print_analysis
from support.profiles import PEAKS, part, profile

# Peaks: 100 GFLOP/s in fp32, 200 in bf16, 10 GB/s.
CONV = part("conv #0", [0.2, 0.3, 0.4], flops=10**10, moved_bytes=10**8)
HALF = part("conv #1", [0.2] * 3, flops=10**10, moved_bytes=10**8, compute="bf16")
COPY = part("copy #2", [0.1] * 3, kind="pointwise", group="pointwise", flops=0, moved_bytes=10**9)
GRAD = part("grad #3", [0.2] * 3, group="weight-gradient", flops=5 * 10**9, moved_bytes=10**9)


@pytest.mark.parametrize(("one", "expected"), [(CONV, 0.1), (HALF, 0.05), (COPY, 0.1), (GRAD, 0.1)])
def test_the_least_time_is_the_longer_of_arithmetic_and_traffic(one, expected):
    assert least_seconds(one, PEAKS) == pytest.approx(expected)


@pytest.mark.parametrize("changes", [{"flops": None}, {"moved_bytes": None}, {"compute": "fp16"}])
def test_of_unknown_work_there_is_no_least_time(changes):
    assert least_seconds(part("x", [1.0], **changes), PEAKS) is None


def test_parts_are_summed_up_by_group_in_the_median_run():
    found = analyse(profile([COPY, CONV, GRAD, HALF], [1.0, 1.2, 1.4], [0.9, 1.0, 1.1]), PEAKS)
    assert [row.name for row in found.rows] == ["conv #0", "grad #3", "conv #1", "copy #2"]
    assert [row.name for row in found.groups] == ["forward", "weight-gradient", "pointwise"]
    assert list(GROUPS).index("forward") < list(GROUPS).index("weight-gradient")
    forward = found.groups[0]
    assert (forward.parts, forward.seconds) == (2, pytest.approx(0.5))
    assert forward.share == pytest.approx(0.5 / 1.2)
    assert forward.flops_per_second == pytest.approx(2e10 / 0.5)
    assert forward.bytes_per_second == pytest.approx(2e8 / 0.5)
    assert forward.roofline == pytest.approx(0.15 / 0.5)
    assert found.total.seconds == pytest.approx(0.8)
    assert found.remainder == pytest.approx(0.4)
    assert (found.whole, found.plain) == (1.2, 1.0)
    assert found.total.least_seconds == pytest.approx(0.35)


def test_a_group_with_a_part_of_unknown_work_has_no_roofline():
    found = analyse(profile([CONV, part("op", [0.1] * 3, flops=None)], [1.0] * 3), PEAKS)
    assert found.groups[0].roofline is None
    assert found.total.roofline is None
    assert analyse(profile([CONV], [1.0] * 3), None).total.roofline is None


def printed(rows: int | None, parts=(COPY, CONV, GRAD, HALF), peaks=PEAKS) -> str:
    out = io.StringIO()
    found = analyse(profile(parts, [1.0, 1.2, 1.4], [0.9, 1.0, 1.1]), peaks)
    print_analysis("Step", found, rows, Console(file=out, width=200, highlight=False))
    return out.getvalue()


def test_the_table_says_what_is_explained_and_what_profiling_costs():
    text = printed(2)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "forward (2) 500.000 41.7% 20.000 200.00 40.0 0.4 30%" in lines
    assert "conv #0 300.000 25.0% 10.000 100.00 33.3 0.3 33%" in lines
    assert "copy #2" not in text
    assert "... and 2 more" in text
    assert "Whole 1200 ms, parts 800 ms (66.7%), unexplained 400 ms" in text
    assert "without profiling 1000 ms (profiling costs +20.0%); median of 3 runs" in text
    assert "Roofline of the whole: 350 ms, 35% of the time without profiling" in text
    assert "above 100 %" not in text


def test_all_rows_or_none_can_be_listed():
    assert "copy #2" in printed(None)
    assert "more:" not in printed(None)
    assert "conv #0" not in printed(0)


def test_what_is_above_the_roofline_is_explained():
    fast = part("conv #0", [0.05] * 3, flops=10**10)
    assert "1 of 1 operations are above 100 %" in printed(3, [fast])


def test_without_peaks_there_are_rates_and_no_roofline():
    text = printed(3, peaks=None)
    assert "33.3" in text
    assert "No roofline: the peaks of this device have not been measured" in text
    assert "Roofline of the whole" not in text


def test_what_is_not_known_is_a_dash():
    text = printed(None, [part("op #0", [0.1] * 3, flops=None), COPY])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "op #0 100.000 8.3% - 0.10 - 0.0 -" in lines
    assert "all parts (2) 200.000 16.7% 0.000 1000.10 0.0 5.0 -" in lines


def test_what_is_computed_twice_is_said():
    assert "computes again" not in printed(3)
    text = printed(3, [CONV, part("conv #1", [0.1, 0.2, 0.3], again=True)])
    assert "200 ms of it computes again what memory had no room for" in text


def test_of_an_even_number_of_runs_the_cost_follows_from_the_two_times_beside_it():
    found = analyse(profile([part("x", [0.5, 0.5])], [0.9, 1.2], [0.8, 1.6]), PEAKS)
    assert found.profile.overhead == pytest.approx(found.whole / found.plain - 1)
