"""ONNX Runtime's profiler: what it writes is read, and what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import EngineOptions
from edgeadapt.runtime.onnxruntime_backend import OnnxRuntimeBackend, OnnxRuntimeCudaBackend
from edgeadapt.runtime.optimizer import Sgd, flat_step_sizes
from edgeadapt.runtime.profile.onnx_events import read_events, record_of

GRAPH = """<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[1,4,8,6] image, float[5,2,3,3] w, float[5,7,2,2] up) =>
  (float loss, float[5,2,3,3] "grad.w")
{
  y = Conv<group=2,pads=[1,1,1,1]>(image, w)
  z = ConvTranspose<strides=[2,2]>(y, up)
  loss = ReduceMean(z)
  by_loss = Sign(y)
  "grad.w" = Conv(by_loss, image)
}"""
# What the profiler says of it, with sizes that a reader can multiply: y is (1, 5, 8, 6), z
# (1, 7, 16, 12).
SHAPES = [
    ("Conv", [[1, 4, 8, 6], [5, 2, 3, 3]], [[1, 5, 8, 6]]),
    ("ConvTranspose", [[1, 5, 8, 6], [5, 7, 2, 2]], [[1, 7, 16, 12]]),
    ("ReduceMean", [[1, 7, 16, 12]], [[]]),
    ("Sign", [[1, 5, 8, 6]], [[1, 5, 8, 6]]),
    ("Conv", [[2, 5, 8, 6], [2, 5, 6, 4]], [[2, 2, 3, 3]]),
]
FLOPS = [2 * 5 * 48 * 2 * 9, 2 * 5 * 48 * 7 * 4, None, None, 2 * (2 * 2 * 9) * 5 * 24]


def events(runs: int = 2) -> list[dict[str, Any]]:
    """As ONNX Runtime writes them: a run every millisecond, a node every tenth of one."""
    found: list[dict[str, Any]] = [
        {"cat": "Session", "name": "session_initialization", "ts": 3, "dur": 100, "args": {}}
    ]
    for run in range(runs):
        begin = 1000 * (run + 1)
        found.append({"cat": "Session", "name": "model_run", "ts": begin, "dur": 900, "args": {}})
        for number, (kind, inputs, outputs) in enumerate(SHAPES):
            arguments = {
                "op_name": kind,
                "node_index": f"{7 * number}",
                "input_type_shape": [{"float": shape} for shape in inputs],
                "output_type_shape": [{"float": shape} for shape in outputs],
                **{"parameter_size": "16", "activation_size": "200", "output_size": "3000"},
            }
            found.append(
                {
                    "cat": "Node",
                    "name": f"n{number}_kernel_time",
                    "ts": begin + 100 * number + 10,
                    "dur": 40 + run,
                    "args": arguments,
                }
            )
            found.append({**found[-1], "name": f"n{number}_fence_before", "dur": 7})
    return found


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    """A profile and the graph that it is of."""
    profile, graph = tmp_path / "run.json", tmp_path / "optimized.onnx"
    shuffled = np.random.default_rng(0).permutation(len(events()))
    profile.write_text(json.dumps([events()[i] for i in shuffled]))
    onnx.save(onnx.parser.parse_model(GRAPH), graph)
    return profile, graph


def test_nodes_of_each_run(written: tuple[Path, Path]) -> None:
    profile, graph = written
    runs = read_events(profile)
    operations, times = record_of(runs, graph, ["loss", "grad.w"])
    assert [o.kind for o in operations] == [kind for kind, *_ in SHAPES]
    assert [o.flops for o in operations] == FLOPS
    assert {o.moved_bytes for o in operations} == {3216}
    assert [o.group for o in operations] == [
        *("forward", "forward", "pointwise", "pointwise", "weight-gradient"),
    ]
    assert operations[0].name == "Conv n0 4->5 3x3 @ 8x6 #0"
    np.testing.assert_allclose(times[0].begins, [1e-5 + 1e-4 * i for i in range(5)])
    np.testing.assert_allclose(times[1].seconds, [41e-6] * 5)


def test_nodes_that_ran_in_another_order(written: tuple[Path, Path]) -> None:
    # The gradient before the loss: found by the nodes' numbers.
    profile, graph = written
    order = [0, 3, 4, 1, 2]
    runs = [
        [replace(run[i], begin=run[place].begin) for place, i in enumerate(order)]
        for run in read_events(profile)
    ]
    operations, _ = record_of(runs, graph, ["loss", "grad.w"])
    assert [o.group for o in operations] == [
        *("forward", "pointwise", "weight-gradient", "forward", "pointwise"),
    ]
    assert [o.flops for o in operations] == [FLOPS[i] for i in order]


def test_a_matrix_product_either_way_round(tmp_path: Path) -> None:
    from edgeadapt.runtime.profile.onnx_events import Event, _flops

    for first in ((3, 17, 48), (3, 48, 17)):
        event = Event("m", "FusedMatMul", 0, 0.0, 0.0, [first, (3, 48, 9)], [(3, 17, 9)], 0)
        assert _flops(event, (3, 48, 9)) == 2 * 3 * 17 * 9 * 48


def test_what_does_not_belong_together_is_refused(written: tuple[Path, Path]) -> None:
    profile, graph = written
    runs = read_events(profile)
    fewer = [run[:4] for run in runs]
    with pytest.raises(BackendError, match=r"ran 4 nodes where its graph has 3, .* not known"):
        record_of(fewer, graph, ["loss"])
    first = [run[:3] for run in runs]  # those that the loss is made of
    assert len(record_of(first, graph, ["loss"]).operations) == 3
    runs[1][2:4] = runs[1][3:1:-1]
    with pytest.raises(BackendError, match="ran 5 nodes where its graph has 5, or others"):
        record_of(runs, graph, ["loss", "grad.w"])


@pytest.mark.parametrize(
    "text", ["", "[{", "{}", '[{"cat": "Node"}]', '[{"name": "model_run", "ts": 1}]', "[3]"]
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    if text == "{}":
        assert read_events(file) == []
        return
    with pytest.raises(BackendError, match=r"the profile run.json of ONNX Runtime cannot be read"):
        read_events(file)


def opened(threads: int = 1) -> tuple[OnnxRuntimeBackend, Any, Any]:
    bundle = open_bundle("nano")
    weights = bundle.weights()
    gradients = np.zeros_like(weights)
    engine = OnnxRuntimeBackend(bundle, weights, gradients, EngineOptions(threads))
    frame = engine.open_frame(32, 32)
    frame.image[:] = np.random.default_rng(0).uniform(-1, 1, frame.image.shape)
    return engine, frame, Sgd(weights, gradients, flat_step_sizes(bundle, "heads", 1e-3))


def test_a_profiled_step_is_a_step_and_its_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (engine, frame, optimizer), (plain, other, steps) = opened(), opened()
    profiler = engine.step_profiler("heads", frame, optimizer)
    for _ in range(2):
        profiler.run()
        plain.step("heads", other, steps)
    assert engine.loss(frame) == plain.loss(other)  # the weights are the same
    assert len(list(tmp_path.iterdir())) == 1
    operations, runs = profiler.record()
    assert len(runs) == 2
    assert operations[-1].group == "optimizer"
    assert len(runs[0].seconds) == len(operations)
    profiler.close()
    assert list(tmp_path.iterdir()) == []
    profiler.close()  # without effect


def test_an_unfinished_profile_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    engine, frame, _ = opened()
    profiler = engine.restore_profiler(frame)
    profiler.run()
    profiler.close()
    assert list(tmp_path.iterdir()) == []


def test_no_times_are_taken_on_a_gpu() -> None:
    engine, frame, _ = opened()
    engine.__class__ = OnnxRuntimeCudaBackend  # no GPU opens here
    with pytest.raises(BackendError, match=r"does not take the time .* GPU\. .*nsys"):
        engine.restore_profiler(frame)
