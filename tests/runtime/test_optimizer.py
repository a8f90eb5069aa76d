from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BundleError, ConfigError
from edgeadapt.runtime.optimizer import OPTIMIZERS, Adam, Sgd, flat_step_sizes, make_optimizer
from support.tiny_bundle import write_tiny_bundle

SIZE = 37


def trajectory(kind: type[Sgd] | type[Adam], steps: int) -> tuple[np.ndarray, ...]:
    """Weights before, step sizes, gradients of each step and weights after, all random."""
    rng = np.random.default_rng(3)
    start = rng.standard_normal(SIZE).astype(np.float32)
    step_sizes = rng.uniform(1e-4, 0.3, SIZE).astype(np.float32)
    gradients = rng.standard_normal((steps, SIZE)).astype(np.float32)
    weights, gradient = start.copy(), np.empty_like(start)
    optimizer = kind(weights, gradient, step_sizes)
    for row in gradients:
        gradient[:] = row
        optimizer.step()
    return start, step_sizes, gradients, weights


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_trajectory_is_that_of_pytorch(name: str, steps: int) -> None:
    torch = pytest.importorskip("torch")
    start, step_sizes, gradients, weights = trajectory(OPTIMIZERS[name], steps)
    # One group for each element, because PyTorch's step size belongs to a group. In float64.
    rows = [torch.tensor([w], dtype=torch.float64, requires_grad=True) for w in start]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    groups = [
        {"params": [row], "lr": float(size)} for row, size in zip(rows, step_sizes, strict=True)
    ]
    reference = kind(groups, lr=1.0)
    for gradient in gradients:
        for row, value in zip(rows, gradient, strict=True):
            row.grad = torch.tensor([value], dtype=torch.float64)
        reference.step()
    expected = np.array([row.item() for row in rows])
    # Each step rounds weights below 4 in size once (2**-22 at most) and a change below 0.5 (Adam:
    # a / sqrt-like ratios up to 1) some ten times (10 * 2**-25).
    np.testing.assert_allclose(weights, expected, rtol=0, atol=steps * 6e-7)
    assert np.abs(weights - start).max() > 0.1


def test_the_first_step_of_adam_has_the_size_of_the_step() -> None:
    start, step_sizes, gradients, weights = trajectory(Adam, 1)
    expected = start - step_sizes * np.sign(gradients[0])
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Sgd, Adam])
def test_a_step_allocates_nothing(kind: type[Sgd] | type[Adam]) -> None:
    weights, gradients = np.ones(100_000, np.float32), np.ones(100_000, np.float32)
    optimizer = kind(weights, gradients, np.full(100_000, 0.1, np.float32))
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000  # one array would be 400,000


@pytest.mark.parametrize("kind", [Sgd, Adam])
def test_an_overflow_is_no_warning(kind: type[Sgd] | type[Adam]) -> None:
    gradients = np.array([3e38, -3e38, np.nan, 0.0], np.float32)
    kind(np.ones(4, np.float32), gradients, np.full(4, 3e38, np.float32)).step()


def test_step_sizes_are_zero_outside_the_scope_and_learned_where_there_is_one(
    tmp_path: Path,
) -> None:
    folder = write_tiny_bundle(
        tmp_path / "x.bundle", step_size=0.25, step_sizes={"tail.bias": 0.5, "head.gain": 0.75}
    )
    bundle = open_bundle(folder)
    offsets = bundle.offsets()
    sizes = flat_step_sizes(bundle, "bias", None)
    assert {name: set(sizes[part].tolist()) for name, part in offsets.items()} == {
        "conv.bias": {0.25},
        "conv.weight": {0.0},
        "head.gain": {0.0},
        "tail.bias": {0.5},
    }
    assert set(flat_step_sizes(bundle, "all", 2.0).tolist()) == {2.0}
    with pytest.raises(BundleError, match="no adaptation scope 'x'"):
        flat_step_sizes(bundle, "x", None)


@pytest.mark.parametrize("step_size", [-1.0, float("nan"), float("inf"), 1e39])
def test_a_step_size_out_of_range_is_refused(tiny: Path, step_size: float) -> None:
    with pytest.raises(ConfigError, match=r"step_size must be a finite number.*bundle's own, 0.05"):
        flat_step_sizes(open_bundle(tiny), "all", step_size)


def test_the_optimizer_is_the_bundles(tmp_path: Path) -> None:
    for name, kind in OPTIMIZERS.items():
        bundle = open_bundle(write_tiny_bundle(tmp_path / f"{name}.bundle", optimizer=name))
        weights = bundle.weights()
        made = make_optimizer(bundle, weights, np.zeros_like(weights), "all", None)
        assert type(made) is kind
