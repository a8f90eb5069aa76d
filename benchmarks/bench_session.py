"""How long a device takes to restore an image, and to take one step of adaptation to it.

    make bench
    EDGEADAPT_BUNDLE=mine.bundle make bench

Times are of the whole call, from the uint8 image and back, after one call that warms the engine.
Before it is timed, a result is compared: a session that does nothing would be quick.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgeadapt import Session
from edgeadapt.bundle import open_bundle
from edgeadapt.testing import photo

BUNDLE = os.environ.get("EDGEADAPT_BUNDLE", "default")
SIZES = [(256, 256), (480, 640)]
ROUNDS = 5


@pytest.fixture
def session() -> Iterator[Session]:
    """The bundle to measure, opened anew for each measurement."""
    with Session(BUNDLE) as opened:
        yield opened


@pytest.mark.parametrize(("height", "width"), SIZES)
def bench_restore(benchmark: BenchmarkFixture, session: Session, height: int, width: int) -> None:
    """One forward pass."""
    image = photo(0, height, width)
    restored = benchmark.pedantic(session.restore, (image,), rounds=ROUNDS, warmup_rounds=1)
    assert restored.shape == image.shape
    assert not np.array_equal(restored, image)


@pytest.mark.parametrize("scope", [scope.name for scope in open_bundle(BUNDLE).manifest.scopes])
@pytest.mark.parametrize(("height", "width"), SIZES)
def bench_step(
    benchmark: BenchmarkFixture, session: Session, height: int, width: int, scope: str
) -> None:
    """Adapt with one step: the step, and the loss after it, which is another forward pass."""
    image = photo(0, height, width)
    before = session.weights.copy()

    def step() -> None:
        session.reset()
        adaptation = session.adapt(image, steps=1, scope=scope)
        assert adaptation.reverted == ""

    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)
    assert not np.array_equal(session.weights, before)
