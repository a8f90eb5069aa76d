"""The CUDA engine's profiler, on a device of host memory: what it counts, not how long it takes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.runtime.backend import EngineOptions, Precision
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.runtime.optimizer import Adam, Sgd, flat_step_sizes
from edgeadapt.runtime.profile.profiler import Profiled
from edgeadapt.testing import photo
from support.host_device import HostDevice

HEIGHT, WIDTH = 32, 48


class Opened:
    """A backend on a device of host memory, with a picture in its frame."""

    def __init__(self, bundle: Bundle, precision: Precision = "fp32") -> None:
        self.bundle, self.weights = bundle, bundle.weights()
        self.gradients = np.zeros_like(self.weights)
        self.device = HostDevice()
        options = EngineOptions(1, precision)
        self.engine = CudaBackend(bundle, self.weights, self.gradients, options, device=self.device)
        self.frame = self.engine.open_frame(HEIGHT, WIDTH)
        self.frame.put(photo(0, HEIGHT, WIDTH), bundle.manifest.image.size_multiple)

    def optimizer(self, kind: Any) -> Any:
        sizes = flat_step_sizes(self.bundle, "heads", 1e-3)
        return kind(self.weights, self.gradients, sizes)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


@pytest.mark.parametrize("kind", [Sgd, Adam])
def test_a_profiled_step_is_a_step(bundle: Bundle, kind: Any) -> None:
    profiled, plain = Opened(bundle), Opened(bundle)
    assert isinstance(profiled.engine, Profiled)
    profiler = profiled.engine.step_profiler("heads", profiled.frame, profiled.optimizer(kind))
    optimizer = plain.optimizer(kind)
    losses = []
    for _ in range(2):
        profiler.run()
        losses.append(plain.engine.step("heads", plain.frame, optimizer))
    assert (profiled.weights == plain.weights).all()
    assert (profiled.gradients == plain.gradients).all()
    assert losses[0] != losses[1]  # the weights moved
    assert plain.engine.loss(plain.frame) == profiled.engine.loss(profiled.frame)
    record = profiler.record()
    assert len(record.runs) == 2
    for opened in (profiled, plain):
        opened.engine.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_counted(bundle: Bundle, precision: Precision) -> None:
    opened = Opened(bundle, precision)
    profiler = opened.engine.step_profiler("heads", opened.frame, opened.optimizer(Sgd))
    profiler.run()
    operations, (run,) = profiler.record()
    assert profiler.graph == "adapt.heads.onnx"
    assert len(operations) == len(run.begins) == len(run.seconds)
    assert len({operation.name for operation in operations}) == len(operations)
    assert operations[0].kind == "upload"
    assert operations[-1].kind == "download"
    assert min(run.seconds) >= 0
    ends = [begin + seconds for begin, seconds in zip(run.begins, run.seconds, strict=True)]
    np.testing.assert_allclose(run.begins[1:], ends[:-1], atol=1e-9)
    groups = Counter(operation.group for operation in operations)
    assert groups["optimizer"] == 1
    assert groups["forward"] > groups["input-gradient"] > 0
    assert groups["weight-gradient"] > 0
    multiplied = {o.compute for o in operations if o.kind in ("conv", "conv_weight_grad")}
    assert multiplied == {precision}
    layers = {o.name.split()[1] for o in operations if o.group == "weight-gradient"}
    assert layers <= {name.rpartition(".")[0] for name in bundle.scope("heads").parameters}
    opened.engine.close()


def test_a_restoration(bundle: Bundle) -> None:
    opened = Opened(bundle)
    opened.engine.restore(opened.frame)
    expected = opened.frame.get(HEIGHT, WIDTH)
    profiler = opened.engine.restore_profiler(opened.frame)
    profiler.run()
    assert (opened.frame.get(HEIGHT, WIDTH) == expected).all()
    operations, _ = profiler.record()
    assert {operation.group for operation in operations} == {"forward", "pointwise", "other"}
    opened.engine.close()


def test_profiling_records_no_graph(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, captured = Opened(bundle), []
    capture = opened.device.capture

    def noted(work: Any) -> Any:
        captured.append(work)
        return capture(work)

    monkeypatch.setattr(opened.device, "capture", noted)
    optimizer = opened.optimizer(Sgd)
    opened.engine.step_profiler("heads", opened.frame, optimizer).run()
    assert captured == []
    opened.engine.step("heads", opened.frame, optimizer)
    assert captured
    opened.engine.close()
