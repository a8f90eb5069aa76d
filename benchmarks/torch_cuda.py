"""PyTorch on a GPU as a peer: eager, replayed from CUDA graphs, or compiled with its autotuner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from edgeadapt.benchmarks.cuda_peers import precision_of
from edgeadapt.benchmarks.peers import F32, Work
from edgeadapt.benchmarks.torch_peer import TorchPeer
from edgeadapt.bundle import Bundle

_WARM_UPS = 3


class TorchCudaPeer(TorchPeer):
    """See `edgeadapt.benchmarks.cuda_peers.TimedPeer`.

    Args:
        name: one of `torch_variants`: says layout, precision, and how it runs.
        image: (1, 3, H, W) in [-1, 1].
        steps: K.
        device: "cpu" runs the same without graphs, for tests.
    """

    def __init__(
        self, name: str, bundle: Bundle, image: F32, work: Work, steps: int, device: str = "cuda"
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        words = name.split()
        self._gpu, self._steps = device == "cuda", steps
        self._held = self.peak_bytes = 0
        with self._watched():
            super().__init__(
                bundle,
                image,
                work.scope,
                work.threads,
                work.factory,
                channels_last="channels-last" in words,
                compiled="compile" in words,
                bf16=precision_of(name) == "bf16",
                device=device,
                fp16=precision_of(name) == "fp16",
                mode="max-autotune",
            )
        self._compiled = "compile" in words
        self._graphed = "graph" in words and self._gpu
        self._graphs: dict[str, tuple[Any, Tensor]] = {}

    def step(self) -> float:
        """One step; watches memory."""
        with self._watched():
            return float(self._run("step").item())

    def restore(self) -> F32:
        """The restored image; watches memory."""
        with self._watched():
            restored: F32 = self._run("restore").float().cpu().numpy()
        return restored

    def seconds(self, operation: str) -> float | None:
        """See `TimedPeer`; images go up and down in the same way for everyone."""
        if operation not in ("step", "adapt", "restore"):
            return None
        self._synchronize()
        begin = time.perf_counter()
        for _ in range(1 if operation == "restore" else self._steps):
            self._run("restore" if operation == "restore" else "step")
        if operation == "adapt":
            self._run("restore")  # as the loss after the last step gives it
        self._synchronize()
        seconds = time.perf_counter() - begin
        return seconds / self._steps if operation == "step" else seconds

    def _run(self, what: str) -> Tensor:
        """Put a step or a restoration on the stream."""
        plain = self._take_step if what == "step" else self._restored
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()
        if not self._graphed:
            return plain()
        if what not in self._graphs:
            self._graphs[what] = self._recorded(plain)
        graph, result = self._graphs[what]
        graph.replay()
        return result

    def _recorded(self, work: Any) -> tuple[Any, Tensor]:
        """A graph of ``work``, and where its result is; the weights stay as they are."""
        kept = [value.detach().clone() for value in self._parameters.values()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
        with torch.no_grad():
            for value, before in zip(self._parameters.values(), kept, strict=True):
                value.copy_(before)
            for state in self._optimizer.state.values():
                for tensor in state.values():
                    if isinstance(tensor, Tensor):
                        tensor.zero_()
        return graph, result

    def _synchronize(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Take note of the most memory that this peer held, whatever others hold."""
        if not self._gpu:
            yield
            return
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        peak = self._held + torch.cuda.max_memory_allocated() - before
        self._held += torch.cuda.memory_allocated() - before
        self.peak_bytes = max(self.peak_bytes, peak)


def versions() -> dict[str, str]:
    """Of CUDA and cuDNN, as PyTorch was built with or found them."""
    found = {"torch_cuda": torch.version.cuda or "", "cudnn": ""}
    with suppress(RuntimeError):
        found["cudnn"] = str(torch.backends.cudnn.version() or "")
    return found
