"""Holding a rewritten program to the one it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeadapt.runtime.plan.check import check
from edgeadapt.runtime.plan.ir import Op, Program
from support.interpret import run

Array = npt.NDArray[Any]
# Of the norm, in float64: sums are only taken in another order.
BOUND = 1e-12


def kinds(program: Program) -> dict[str, int]:
    """How many operations there are of each kind."""
    return dict(Counter(op.kind for op in program))


def only(program: Program, kind: str) -> Op:
    """The one operation of a kind."""
    (op,) = [op for op in program if op.kind == kind]
    return op


def assert_same(program: Program, other: Program) -> Program:
    """Both are sound and compute the same of random values; returns ``other``."""
    check(program)
    check(other)
    image, weights = random_values(program)
    with one_thread():
        assert_close(run(other, image, weights), run(program, image, weights))
    return other


@contextmanager
def one_thread() -> Iterator[None]:
    """The images are small: threads that wait for each other take more time than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_close(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Every output within the bound of its own norm; a gradient within that of all of them, since
    one may be nothing but rounding: of a bias in front of a normalisation."""
    assert list(found) == list(expected)
    grads = [value for name, value in expected.items() if name.startswith("grad.")]
    scale = np.sqrt(sum(float((value**2).sum()) for value in grads))
    for name, value in expected.items():
        assert np.isfinite(value).all(), f"{name}: nothing is compared"
        error = float(np.linalg.norm(found[name] - value))
        size = scale if name.startswith("grad.") else float(np.linalg.norm(value))
        assert error <= BOUND * size, f"{name}: {error:.1e} of {size:.1e}"


def random_values(program: Program, seed: int = 0) -> tuple[Array, dict[str, Array]]:
    """An image and weights."""
    rng = np.random.default_rng(seed)
    shapes = {t.name: t.shape for t in program.tensors.values() if t.storage == "weights"}
    bases = {n: s for n, s in shapes.items() if program.tensors[n].view is None}
    weights = {name: rng.standard_normal(shape) for name, shape in bases.items()}
    image = program.tensors.get("image")
    return rng.uniform(-1, 1, image.shape if image else (1, 3, 1, 1)), weights
