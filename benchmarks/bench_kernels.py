"""How long single kernels take at the shapes of the deblurring network.

    make bench PYTEST_ARGS="-k kernels"

Each is held to its reference before it is timed. Times are of one call on every core with its data
in the caches, as far as they hold it; GFLOP/s stands beside each in the JSON of --benchmark-json.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgeadapt.benchmarks.kernel_problems import (
    LAYERS,
    ONE_WAY,
    SQUARE,
    Problem,
    conv_problem,
    resize_problem,
    weight_grad_problem,
)

ROUNDS, WARMUP_ROUNDS = 30, 3
DTYPES = ["f32", "bf16"]
SIZES = [(16, (128, 128)), (64, (32, 32))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def bench_conv(benchmark: BenchmarkFixture, layer: str, dtype: str) -> None:
    """Convolution, bias and LeakyReLU, without a transform."""
    measure(benchmark, conv_problem(layer, dtype))


@pytest.mark.parametrize("layer", SQUARE)
def bench_winograd(benchmark: BenchmarkFixture, layer: str) -> None:
    """The same by Winograd's transform; GFLOP/s count the multiplications that it saves."""
    measure(benchmark, conv_problem(layer, "f32", "winograd"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", ONE_WAY)
def bench_conv_weight_grad(benchmark: BenchmarkFixture, layer: str, dtype: str) -> None:
    """Gradients of weight and bias."""
    measure(benchmark, weight_grad_problem(layer, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "size"), SIZES)
@pytest.mark.parametrize("kernel", ["resize", "resize_grad"])
def bench_resize(
    benchmark: BenchmarkFixture, kernel: str, channels: int, size: tuple[int, int], dtype: str
) -> None:
    """Bilinear enlargement by two, and its adjoint."""
    measure(benchmark, resize_problem(kernel, channels, size, dtype))


def measure(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """Check, then time."""
    problem.check()
    benchmark.pedantic(problem.run, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)
    if problem.operations and benchmark.stats is not None:
        seconds = float(benchmark.stats.stats.median)
        benchmark.extra_info["gflops"] = round(problem.operations / seconds / 1e9, 1)
