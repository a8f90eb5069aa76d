"""How long an adaptation step, a whole adaptation and a restoration take, on every engine.

    make bench
    EDGEADAPT_BUNDLE=mine.bundle make bench

Before anything is timed, results are compared: an engine that does nothing would be quick.
`edgeadapt bench peers` compares with PyTorch, in turn; here each engine is timed by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgeadapt import Session
from edgeadapt.benchmarks.peers import HALF, Peer, Work, make_peers
from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BackendError, EdgeadaptError
from edgeadapt.runtime.backend import Precision, usable_cores
from edgeadapt.testing import photo, psnr

U8 = npt.NDArray[np.uint8]
BUNDLE = os.environ.get("EDGEADAPT_BUNDLE", "nano")
HEIGHT = WIDTH = 256
STEPS = 5
ROUNDS = 5
REFERENCE = "onnxruntime"
ENGINES = [REFERENCE, "native", "native" + HALF]
# After K steps, of images of 8 bits: a level here and there differs in fp32, more of them in bf16.
LEAST_DB = {"fp32": 60.0, "bf16": 40.0}


@pytest.fixture(scope="module", params=ENGINES)
def peer(request: pytest.FixtureRequest) -> Peer:
    """The bundle on one engine, as single steps."""
    try:
        return open_peer(request.param)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(params=ENGINES)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The bundle on one engine."""
    try:
        opened = open_session(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def bench_restore(benchmark: BenchmarkFixture, peer: Peer) -> None:
    """One forward pass of the bundle's own weights, from float32 to float32."""
    benchmark.pedantic(peer.restore, rounds=ROUNDS, warmup_rounds=1)


def bench_step(benchmark: BenchmarkFixture, peer: Peer) -> None:
    """Forward pass, loss, backward pass and update."""
    benchmark.pedantic(peer.step, rounds=ROUNDS, warmup_rounds=1)


def bench_adapt(benchmark: BenchmarkFixture, session: Session) -> None:
    """K steps, the loss after them, and a restoration, from the uint8 image and back."""
    benchmark.pedantic(adapt, (session,), rounds=ROUNDS, warmup_rounds=1)


def adapt(session: Session) -> U8:
    """Start from the bundle's weights, adapt, restore."""
    image = photo(0, HEIGHT, WIDTH)
    session.reset()
    session.adapt(image, STEPS, session.bundle.manifest.scopes[0].name)
    return session.restore(image)


def open_peer(engine: str) -> Peer:
    """An engine that agrees with ONNX Runtime on a step and a restoration.

    Raises:
        EdgeadaptError: if it does not.
    """
    bundle = open_bundle(BUNDLE)
    scope = bundle.manifest.scopes[0].name
    work = Work(str(bundle.path), HEIGHT, WIDTH, scope, usable_cores(), factory="")
    opened, _ = make_peers(list(dict.fromkeys([REFERENCE, engine])), bundle, work)
    return opened[engine]


def open_session(engine: str) -> Session:
    """A session whose adapted image is as good as that of ONNX Runtime.

    Raises:
        EdgeadaptError: if it is not.
    """
    precision: Precision = "bf16" if engine.endswith(HALF) else "fp32"
    opened = Session(BUNDLE, engine.removesuffix(HALF), precision=precision)
    with Session(BUNDLE, REFERENCE) as reference:
        found = psnr(adapt(opened), adapt(reference))
    if not found >= LEAST_DB[precision]:
        raise EdgeadaptError(f"{engine} is {found:.1f} dB from {REFERENCE}; nothing was timed.")
    return opened
