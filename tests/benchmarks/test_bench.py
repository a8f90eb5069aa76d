"""`make bench`: what it times is held to the references first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.benchmarks import bench_kernels, bench_session
from edgeadapt.benchmarks.kernel_problems import (
    LAYERS,
    Layer,
    Problem,
    conv_problem,
    resize_problem,
    weight_grad_problem,
)
from edgeadapt.errors import EdgeadaptError
from edgeadapt.kernels.conv import ConvSpec
from edgeadapt.runtime.session import Session

SPECS = {
    "square": ConvSpec((3, 3), pads=(1, 1)),
    "stride 2": ConvSpec((3, 3), (2, 2), (1, 1)),
    "up": ConvSpec((4, 4), (2, 2), (1, 1), transposed=True),
}
PROBLEMS: dict[str, Callable[[str], Problem]] = {
    **{f"conv, {name}": lambda dtype, name=name: conv_problem(name, dtype) for name in SPECS},
    "winograd": lambda dtype: conv_problem("square", "f32", "winograd"),
    "weight gradient": lambda dtype: weight_grad_problem("stride 2", dtype),
    "resize": lambda dtype: resize_problem("resize", 3, (8, 12), dtype),
    "adjoint of resize": lambda dtype: resize_problem("resize_grad", 3, (8, 12), dtype),
}


class Benchmark:
    """Stands for the fixture: calls once and keeps no time."""

    def __init__(self) -> None:
        self.stats = None
        self.calls: list[Callable[..., object]] = []

    def pedantic(self, call: Callable[..., object], args: Any = (), **options: object) -> None:
        assert {"rounds", "warmup_rounds"} <= options.keys()
        call(*args)
        self.calls.append(call)


@pytest.fixture(autouse=True)
def _small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in SPECS.items():
        monkeypatch.setitem(LAYERS, name, Layer(6, 5, (8, 36), spec))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_kernel_agrees_with_its_reference_and_a_wrong_one_is_not_timed(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, benchmark = PROBLEMS[name](dtype), Benchmark()
    fixture: Any = benchmark
    bench_kernels.measure(fixture, problem)
    assert len(benchmark.calls) == 1
    plain = problem.run

    def without_last_row() -> None:
        plain()
        problem._arrays["y"][..., -1, :] = 0

    monkeypatch.setattr(problem, "run", without_last_row)
    with pytest.raises(EdgeadaptError, match=r"from its reference; nothing was timed"):
        bench_kernels.measure(fixture, problem)
    assert len(benchmark.calls) == 1


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_kernel_that_writes_nothing_is_not_timed(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = conv_problem("square", dtype)
    problem.check()
    monkeypatch.setattr(problem, "run", lambda: None)
    with pytest.raises(EdgeadaptError, match="nan from its reference"):
        problem.check()


def test_operations_are_those_of_the_plan() -> None:
    # Two for each multiplication: outputs, inputs, taps, pixels of the smaller image.
    assert LAYERS["square"].operations == 2 * 5 * 6 * 9 * 8 * 36
    assert LAYERS["stride 2"].operations == 2 * 5 * 6 * 9 * 4 * 18
    assert LAYERS["up"].operations == 2 * 5 * 6 * 16 * 8 * 36
    assert LAYERS["up"].y_size == (16, 72)


@pytest.mark.parametrize("engine", bench_session.ENGINES)
def test_an_engine_that_does_not_adapt_is_not_timed(
    engine: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HEIGHT": 24, "WIDTH": 32, "BUNDLE": str(tiny)}.items():
        monkeypatch.setattr(bench_session, name, value)
    fixture: Any = Benchmark()
    peer = bench_session.open_peer(engine)
    bench_session.bench_step(fixture, peer)
    bench_session.bench_restore(fixture, peer)
    with bench_session.open_session(engine) as session:
        bench_session.bench_adapt(fixture, session)
    assert len(fixture.calls) == 3
    plain = bench_session.adapt
    results: list[Any] = []

    def darker_first(opened: Session) -> Any:
        results.append(plain(opened))
        return results[-1] // 8 * 7 if len(results) == 1 else results[-1]

    monkeypatch.setattr(bench_session, "adapt", darker_first)
    with pytest.raises(EdgeadaptError, match="dB from onnxruntime; nothing was timed"):
        bench_session.open_session(engine)
    assert len(results) == 2
