"""The native engine: every graph of the tests against float64 and against ONNX Runtime."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle, open_bundle
from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.backend import EngineOptions, Frame
from edgeadapt.runtime.native_backend import NativeBackend
from edgeadapt.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edgeadapt.runtime.optimizer import Adam, Sgd, flat_step_sizes
from edgeadapt.runtime.plan.compile import compile_graph
from edgeadapt.runtime.plan.lifetimes import pieces
from edgeadapt.runtime.plan.read import read
from edgeadapt.testing import assert_gradient_close
from support.exported import MAKE, exported
from support.exporting import export
from support.interpret import run
from support.reading import assert_same
from support.user_networks import LOSSES, Network, conv

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
EVERYTHING = ["nano", *MAKE]


def bundle_of(name: str) -> Bundle:
    return open_bundle("nano") if name == "nano" else exported(name)


def frame(bundle: Bundle, rows: int = 3, columns: int = 2, seed: int = 0) -> Frame:
    multiple = bundle.manifest.image.size_multiple
    shape = (1, 3, rows * multiple, columns * multiple)
    image = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    return Frame(image, np.full_like(image, np.nan))


class Opened:
    """A backend on other weights than the bundle's, with gradients that start as NaN."""

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions | None = None,
        kind: Any = None,
        spread: float = 0.1,
    ):
        self.bundle = bundle
        rng, own = np.random.default_rng(0), bundle.weights()
        self.weights = (own + spread * rng.standard_normal(own.shape)).astype(np.float32)
        self.gradients = np.full_like(own, np.nan)
        make = kind or NativeBackend
        self.engine = make(bundle, self.weights, self.gradients, options or EngineOptions(2))

    def outputs(self, scope: str, at: Frame) -> dict[str, Array]:
        """Of the scope's graph."""
        loss = self.engine.gradients(scope, at)
        found = self.bundle.named(self.gradients)
        gradients = {GRADIENT_PREFIX + n: found[n] for n in self.bundle.scope(scope).parameters}
        return {"loss": np.array(loss), "restored": at.restored, **gradients}


def interpreted(opened: Opened, graph: str, at: Frame, flat: F32) -> dict[str, Array]:
    """The graph as it was read, without any fusion, in float64."""
    program = read(opened.bundle, graph, *at.image.shape[2:])
    found = run(program, at.image, opened.bundle.named(flat))
    return {name: value for name, value in found.items() if name != "loss_terms"}


def small_scopes(bundle: Bundle) -> list[str]:
    return [scope.name for scope in bundle.manifest.scopes]


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_graph_gives_what_float64_and_onnxruntime_give(name: str) -> None:
    bundle = bundle_of(name)
    # Further from its trained weights nano gives values of 10^6, in which float32 cancels.
    opened = Opened(bundle, spread=0.02)
    peer = Opened(bundle, EngineOptions(1), OnnxRuntimeBackend, spread=0.02)
    at, other = frame(bundle), frame(bundle)
    for scope in small_scopes(bundle):
        found = opened.outputs(scope, at)
        assert_same(interpreted(opened, bundle.scope(scope).graph, at, opened.weights), found)
        assert_same(peer.outputs(scope, other), found)
    loss = opened.engine.loss(at)
    assert loss == pytest.approx(peer.engine.loss(other), rel=1e-5, abs=1e-7)
    opened.engine.restore(at)
    own = interpreted(opened, RESTORE_GRAPH, at, bundle.weights())
    assert_same(own, {"restored": at.restored})
    opened.engine.restore_adapted(at)
    adapted = interpreted(opened, LOSS_GRAPH, at, opened.weights)
    assert_same({"restored": adapted["restored"]}, {"restored": at.restored})


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    bundle = bundle_of("nano")
    first, other = Opened(bundle, EngineOptions(2)), Opened(bundle, EngineOptions(threads))
    at, again = frame(bundle, 5, 7), frame(bundle, 5, 7)
    assert_equal(first.outputs("all", at), other.outputs("all", again))


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_lies_in_the_arena_before_changes_no_bit(name: str) -> None:
    bundle = bundle_of(name)
    opened, at = Opened(bundle), frame(bundle)
    first = copied(opened.outputs("all", at))
    opened.engine._arena.view(np.uint8).fill(255)  # NaN in every type
    opened.gradients.fill(np.nan)
    at.restored.fill(np.nan)
    assert_equal(opened.outputs("all", at), first)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_no_kernel_writes_outside_of_its_tensors(
    name: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(name)
    options = EngineOptions(2, precision)
    plain, at = Opened(bundle, options), frame(bundle)
    expected = copied(plain.outputs("all", at))
    apart = Apart()
    monkeypatch.setattr("edgeadapt.runtime.plan.compile.place", apart.place)
    opened = Opened(bundle, options)
    opened.engine.prepare("all", at, Adam(opened.weights, opened.gradients, opened.weights))
    arena = opened.engine._arena
    arena.fill(0xA5)
    opened.gradients.fill(np.nan)
    at.restored.fill(np.nan)
    assert_equal(opened.outputs("all", at), expected)
    for begin, end in apart.gaps(opened):
        assert (arena[begin:end] == 0xA5).all(), (begin, end)


class Apart:
    """A placement in which nothing shares memory and every piece has guard bytes around it."""

    guard = 192

    def __init__(self) -> None:
        self.parts: dict[int, list[tuple[int, int]]] = {}  # arena size -> (begin, bytes)

    def place(self, program: Any, scratch_bytes: Any) -> Any:
        from edgeadapt.runtime.plan.place import Placement

        offsets, scratch, parts, top = {}, [], [], self.guard
        for piece in pieces(program):
            offsets |= dict.fromkeys(piece.names, top)
            # Up to the last byte that the largest tensor has: what aligns the next is guarded too.
            size = max(program.tensors[name].nbytes for name in piece.names)
            parts.append((top, size))
            top += piece.nbytes + self.guard
        for op in program.ops:
            size = scratch_bytes(op, program)
            scratch.append(top)
            parts.append((top, size))
            top += -(-size // 64) * 64 + self.guard
        self.parts[top] = parts
        return Placement(offsets, tuple(scratch), top, top)

    def gaps(self, opened: Opened) -> list[tuple[int, int]]:
        """Of the largest program: the adaptation's."""
        largest = max(self.parts)
        begins = [*(begin for begin, _ in self.parts[largest]), largest]
        ends = [0, *(begin + size for begin, size in self.parts[largest])]
        return list(zip(ends, begins, strict=True))


@pytest.mark.parametrize("scope", ["all", "heads"])
def test_a_step_of_sgd_is_the_gradients_and_the_update(scope: str) -> None:
    bundle = bundle_of("nano")
    one, two = Opened(bundle), Opened(bundle)
    at, again = frame(bundle), frame(bundle)
    sizes = flat_step_sizes(bundle, scope, 1e-12)  # at these weights the loss is 1e9
    optimizer, other = (Sgd(o.weights, o.gradients, sizes) for o in (one, two))
    before = one.weights.copy()
    two.gradients.fill(0.0)  # numpy multiplies those outside the scope by 0
    for _ in range(3):
        loss = one.engine.step(scope, at, optimizer)
        assert loss == two.engine.gradients(scope, again)
        other.step()
        # The kernel multiplies and subtracts with one rounding where the CPU can, numpy with two.
        assert_gradient_close(one.weights, two.weights, 2.0**-22)
        np.copyto(one.weights, two.weights)
    changed = {n for n, v in one.bundle.named(one.weights != before).items() if v.any()}
    inside = set(bundle.scope(scope).parameters)
    assert changed <= inside  # some gradients are too small here to change a float32
    assert len(changed) >= len(inside) / 2


def test_another_step_size_is_used_from_the_next_step_on() -> None:
    bundle = bundle_of("nano")
    opened, at = Opened(bundle), frame(bundle)
    for step_size in (1e-12, 1e-11, 0.0):
        before = opened.weights.copy()
        sizes = flat_step_sizes(bundle, "all", step_size)
        opened.engine.step("all", at, Sgd(opened.weights, opened.gradients, sizes))
        expected = before - np.float32(step_size) * opened.gradients
        assert_gradient_close(opened.weights, expected, 2.0**-22)
        assert np.array_equal(opened.weights, before) == (step_size == 0.0)


def test_adam_steps_after_the_gradients() -> None:
    bundle = bundle_of("nano")
    one, two, at = Opened(bundle), Opened(bundle), frame(bundle)
    sizes = flat_step_sizes(bundle, "all", 1e-3)
    first, second = (Adam(o.weights, o.gradients, sizes) for o in (one, two))
    assert one.engine.step("all", at, first) == two.engine.gradients("all", at)
    second.step()
    assert np.array_equal(one.weights, two.weights)


def test_every_size_and_frame_has_its_own_results() -> None:
    bundle = bundle_of("nano")
    opened = Opened(bundle)
    frames = [frame(bundle, 2, 3, 1), frame(bundle, 4, 1, 2), frame(bundle, 4, 1, 3)]
    expected = [copied(Opened(bundle).outputs("all", at)) for at in frames]
    for at, wanted in [*zip(frames, expected, strict=True), (frames[0], expected[0])]:
        at.restored.fill(np.nan)
        opened.gradients.fill(np.nan)
        opened.engine.restore(at)
        assert_equal(opened.outputs("all", at), wanted)


def test_a_memory_budget_is_met_with_the_same_bits() -> None:
    bundle = bundle_of("nano")
    plain, at = Opened(bundle), frame(bundle, 6, 8)
    expected = copied(plain.outputs("all", at))
    whole = plain.engine._arena.nbytes
    tight = Opened(bundle, EngineOptions(2, memory_budget=whole * 6 // 10))
    assert_equal(tight.outputs("all", at), expected)
    assert tight.engine._arena.nbytes <= whole * 6 // 10


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    bundle = bundle_of("nano")
    opened = Opened(bundle, EngineOptions(2, memory_budget=1000))
    with pytest.raises(ConfigError, match="memory"):
        opened.engine.gradients("all", frame(bundle))
    assert np.isnan(opened.gradients).all()


def test_an_arena_that_the_machine_does_not_have_leaves_the_backend_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = bundle_of("nano")
    opened, small, large = Opened(bundle), frame(bundle), frame(bundle, 4, 4)
    expected = copied(opened.outputs("all", small))

    def allocate(count: int) -> Any:
        if count > 2**16:
            raise MemoryError
        return np.empty(count, np.uint8)

    with monkeypatch.context() as context:
        context.setattr("edgeadapt.runtime.native_backend._aligned_bytes", allocate)
        for _ in range(2):
            with pytest.raises(BackendError, match=r"64x64 needs \d+ MiB.* memory budget"):
                opened.engine.gradients("all", large)
    small.restored.fill(np.nan)
    opened.gradients.fill(np.nan)
    assert_equal(opened.outputs("all", small), expected)


def test_bf16_stays_close() -> None:
    bundle = bundle_of("nano")
    at, other = frame(bundle, 4, 5), frame(bundle, 4, 5)
    Opened(bundle, EngineOptions(2)).engine.restore(at)
    Opened(bundle, EngineOptions(2, "bf16")).engine.restore(other)
    difference = np.abs(at.restored - other.restored).max()
    # A rounding to bfloat16 is up to 2^-9 of a value near 1; the residual adds a few of its own.
    assert 1e-6 < difference < 2.0**-6


def test_steps_after_the_first_allocate_nothing() -> None:
    bundle = bundle_of("nano")
    opened, at = Opened(bundle), frame(bundle, 4, 4)
    sizes = flat_step_sizes(bundle, "all", 1e-12)
    optimizer = Sgd(opened.weights, opened.gradients, sizes)
    step = opened.engine.step
    step("all", at, optimizer)
    step("all", at, optimizer)  # Python's own caches
    native = malloc_bytes()
    for _ in range(5):
        step("all", at, optimizer)
    assert malloc_bytes() <= native  # nothing is kept
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(5):
            step("all", at, optimizer)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # What calling functions takes for a moment; one more array of the weights would be 650,000.
    assert peak < 16384


class MallocInfo(ctypes.Structure):
    """mallinfo2's result. Made in each call, this and the library would be what is allocated."""

    _fields_ = tuple((f"field{number}", ctypes.c_size_t) for number in range(10))


C_LIBRARY = ctypes.CDLL(None)


def malloc_bytes() -> int:
    """Bytes in use of the C library's heap, mapped blocks included; 0 where it does not tell."""
    if not hasattr(C_LIBRARY, "mallinfo2"):
        return 0
    C_LIBRARY.mallinfo2.restype = MallocInfo
    info = C_LIBRARY.mallinfo2()
    return int(info.field7 + info.field4)  # uordblks, hblkhd


def test_an_operator_without_a_rule_is_refused_when_the_backend_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgeadapt.runtime.plan.rules import rules

    monkeypatch.delitem(rules(), "LeakyRelu")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"no rule for LeakyRelu.*--backend onnxruntime"):
        Opened(bundle_of("nano"))


def test_what_a_single_pixel_does_not_have_is_no_reason_to_refuse_a_bundle(tmp_path: Path) -> None:
    network = Network(conv(), LOSSES["Huber and total variation"])
    network.size_multiple = 1  # at 1x1 there are no differences of neighbours
    bundle = export(network, tmp_path / "small.bundle")
    opened, at = Opened(bundle), frame(bundle, 5, 7)
    found = opened.outputs("all", at)
    assert_same(interpreted(opened, bundle.scope("all").graph, at, opened.weights), found)
    with pytest.raises(BackendError, match="no rule for ReduceMean of nothing"):
        opened.engine.loss(frame(bundle, 1, 1))


def test_only_what_no_larger_graph_holds_is_read_when_the_backend_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []

    def read_and_note(bundle: Bundle, name: str, height: int, width: int) -> None:
        names.append(name)
        read(bundle, name, height, width)

    monkeypatch.setattr("edgeadapt.runtime.plan.compile.read", read_and_note)
    bundle = bundle_of("nano")
    Opened(bundle)
    assert names == [bundle.scope("all").graph]


def test_planning_the_default_bundle_says_its_memory_before_it_runs() -> None:
    bundle = bundle_of("nano")
    opened, at = Opened(bundle), frame(bundle)
    graph = bundle.scope("all").graph
    plan = compile_graph(bundle, graph, *at.image.shape[2:], opened.engine._target)
    opened.engine.gradients("all", at)
    assert opened.engine._arena.nbytes == plan.placement.arena_bytes


def copied(values: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(value) for name, value in values.items()}


def assert_equal(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
