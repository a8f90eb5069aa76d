"""cuDNN on one device: its handle, its plans, and calls of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from edgeadapt.errors import one_line
from edgeadapt.runtime.cuda.cudnn_conv import UIDS, Convolution
from edgeadapt.runtime.cuda.cudnn_graph import build, variants
from edgeadapt.runtime.cuda.device import Device, Span

WORKSPACE_CAP = 64 * 2**20  # bytes
MOST_CANDIDATES = 8  # plans that are built, of those that heuristics name
# Engines that are compiled when they are built take seconds each, and a network has a hundred
# convolutions: after so long no further one is built for the same.
BUILD_SECONDS = 4.0


class CudnnError(Exception):
    """cuDNN does not do this; an own kernel does."""


@dataclass(frozen=True)
class BuiltPlan:
    """A plan that can be run."""

    name: str  # of engine and knobs, the same in each process with this cuDNN
    workspace_bytes: int
    graph: Any
    index: int  # of the graph's plans


@dataclass
class Cudnn:
    """cuDNN for one device. Everything of it belongs to that device's stream."""

    device: Device
    module: Any  # the frontend
    handle: Any
    version: str
    _stream: int

    def candidates(self, what: Convolution) -> Iterator[BuiltPlan]:
        """Plans for a convolution, those first that cuDNN thinks fastest.

        All give the same bits each time, and compute in the precision that is asked for.

        Raises:
            CudnnError: if cuDNN does not take it.
        """
        kinds = variants(what)
        end = time.monotonic() + BUILD_SECONDS
        refused = []
        for variant in kinds:
            try:
                graph, names = self._graph(what, variant)
            except CudnnError as error:
                refused.append(error)
                continue
            built = 0
            for index in range(len(names)):
                if built == MOST_CANDIDATES // len(kinds) or (built and time.monotonic() > end):
                    break
                with suppress(CudnnError):
                    plan = self._plan(graph, names, index)
                    built += 1
                    yield plan
        if len(refused) == len(kinds):
            raise refused[0]

    def find(self, what: Convolution, name: str) -> BuiltPlan:
        """The plan of that name.

        Raises:
            CudnnError: if there is none, or it cannot be built.
        """
        for variant in variants(what):
            if variant != _variant(name):
                continue
            graph, names = self._graph(what, variant)
            if name in names:
                return self._plan(graph, names, names.index(name))
        raise CudnnError(f"cuDNN has no plan {name}")

    def dump(self, plan: BuiltPlan) -> bytes | None:
        """A plan for `load`; None if it has no form."""
        try:
            with self._asking():
                plan.graph.build_plan_at_index(plan.index)  # it is: this chooses it among others
                return bytes(plan.graph.serialize())
        except CudnnError:
            return None

    def load(self, name: str, data: bytes) -> BuiltPlan:
        """A plan that was dumped on such a device with this cuDNN; nothing is compiled.

        Raises:
            CudnnError: if it cannot be read, or does not run here.
        """
        with self._asking():
            graph = self.module.pygraph(handle=self.handle)
            graph.deserialize(list(data))
            return _capped(name, int(graph.get_workspace_size_plan_at_index(0)), graph, 0)

    def call(
        self, what: Convolution, plan: BuiltPlan, addresses: Mapping[str, int], workspace: int
    ) -> CudnnCall:
        """A call of a plan with the addresses of its tensors, by role."""
        return CudnnCall(self, what, plan, dict(addresses), workspace)

    def enqueue(self, plan: BuiltPlan, pack: dict[int, int], workspace: int, stream: int) -> None:
        """Put a plan on the stream."""
        if stream != self._stream:
            self.module.set_stream(handle=self.handle, stream=stream)
            self._stream = stream
        plan.graph.execute_plan_at_index(pack, workspace, plan.index, handle=self.handle)

    def close(self) -> None:
        """Give back the handle; nothing of it is running or recorded any more."""
        handle, self.handle = self.handle, None
        if handle is not None:
            with suppress(Exception), self.device.entered():
                self.module.destroy_handle(handle)

    def _graph(self, what: Convolution, variant: str) -> tuple[Any, list[str]]:
        """A graph, and the names of all plans that heuristics have for it; none is built."""
        modes = self.module.heur_mode
        with self._asking():
            graph = build(self.module, self.handle, what, variant)
            graph.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
            graph.deselect_numeric_notes(_unwanted(self.module.numerical_note, what.compute))
            names = map(graph.get_plan_name_at_index, range(graph.get_execution_plan_count()))
            return graph, [f"{name} {variant}".rstrip() for name in names]

    def _plan(self, graph: Any, names: Sequence[str], index: int) -> BuiltPlan:
        with self._asking():
            graph.build_plan_at_index(index)  # refuses what was deselected
            workspace = int(graph.get_workspace_size_plan_at_index(index))
            return _capped(names[index], workspace, graph, index)

    def _asking(self) -> _Asking:
        return _Asking(self.device)


def _variant(name: str) -> str:
    """Of the graph that a plan of this name belongs to."""
    return name.partition(" ")[2]


def _capped(name: str, workspace: int, graph: Any, index: int) -> BuiltPlan:
    if workspace > WORKSPACE_CAP:
        raise CudnnError(f"{name} needs {workspace:,} bytes of working memory")
    return BuiltPlan(name, workspace, graph, index)


class _Asking:
    """The device's context, and errors of every kind as one: cuDNN's are many."""

    def __init__(self, device: Device) -> None:
        self._entered = device.entered()

    def __enter__(self) -> int:
        return self._entered.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._entered.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, CudnnError):
            raise CudnnError(one_line(error)) from error


class CudnnCall:
    """A convolution on the stream: a `LibraryCall`."""

    def __init__(
        self,
        library: Cudnn,
        what: Convolution,
        plan: BuiltPlan,
        addresses: dict[str, int],
        workspace: int,
    ) -> None:
        self._library, self._plan, self._workspace = library, plan, workspace
        self.convolution = what
        self._pack = {UIDS[role]: addresses[role] for role in what.roles}
        spans = {role: (addresses[role], what.span_bytes(role)) for role in what.roles}
        self.writes: Sequence[Span] = [spans.pop(what.result)]
        self.reads: Sequence[Span] = list(spans.values())
        if plan.workspace_bytes:
            self.writes = [*self.writes, (workspace, plan.workspace_bytes)]

    @property
    def name(self) -> str:
        """What it is called in messages and in timings."""
        return f"cudnn {self.convolution.kind} {self._plan.name}"

    def enqueue(self, stream: int) -> None:
        """See `LibraryCall`."""
        self._library.enqueue(self._plan, self._pack, self._workspace, stream)


def open_cudnn(device: Device) -> Cudnn | None:
    """cuDNN for a device; None where it, or its frontend, is not installed or does not start."""
    try:
        module: Any = import_module("cudnn")
        with device.entered() as stream:
            handle = module.create_handle()
            module.set_stream(handle=handle, stream=stream)
        version = f"{module.backend_version()}, frontend {module.__version__}"
    except Exception:  # noqa: BLE001  of many kinds, for a library of another system too
        return None
    return Cudnn(device, module, handle, version, stream)


def _unwanted(notes: Any, compute: str) -> list[Any]:
    """Engines that add up in another order each time, or in less than float32.

    Where the products are float32, also those that round what is multiplied.
    """
    names = ["NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION"]
    if compute == "f32":
        names += ["TENSOR_CORE", "DOWN_CONVERT_INPUTS", "FFT", "WINOGRAD"]
        names += ["WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13"]
    return [getattr(notes, name) for name in names if hasattr(notes, name)]
