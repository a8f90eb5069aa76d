"""What is in an exported bundle, and what an export that fails leaves behind."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgeadapt.bundle import WEIGHTS, Adaptation, Bundle, Model, open_bundle
from edgeadapt.errors import ExportError
from edgeadapt.export import exporter
from edgeadapt.export.check import Graphs, smooth_image
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.export.reference import Reference
from edgeadapt.training.network import build
from support.exporting import Around, assert_step, export, float32_weights

SMALL: dict[str, Any] = {"widths": [4, 6], "n_scales": 2, "blocks": 1, "share_scales": True}
SCOPES = {"all": "all", "heads": "heads", "bias": "bias", "encoder": r"encode_\d.*weight"}


def deblur(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(**SMALL)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(deblur(), tmp_path_factory.mktemp("exporter") / "x.bundle", SCOPES)


def graph_files(bundle: Bundle) -> list[Path]:
    return sorted(bundle.path.glob("*.onnx"))


def load(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.path / name, load_external_data=False)


def functions_called(model: onnx.ModelProto) -> Counter[str]:
    """Calls of local functions, by name without the attributes: ConvWeightGrad, ..."""
    return Counter(n.op_type.partition("_")[0] for n in model.graph.node if n.domain == "edgeadapt")


def test_the_files(bundle: Bundle):
    scopes = [f"adapt.{name}.onnx" for name in SCOPES]
    expected = sorted([*scopes, "loss.onnx", "restore.onnx", WEIGHTS, "manifest.json"])
    assert sorted(file.name for file in bundle.path.iterdir()) == expected
    assert open_bundle(bundle.path).manifest == bundle.manifest


def test_every_graph_is_sound_onnx(bundle: Bundle):
    for file in graph_files(bundle):
        onnx.checker.check_model(str(file), full_check=True)  # with inference of every shape
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        image, *parameters = session.get_inputs()
        assert image.shape == [1, 3, "H", "W"]
        names = [] if file.name == "restore.onnx" else [r.name for r in bundle.manifest.parameters]
        assert [value.name for value in parameters] == names


def test_a_graph_has_nothing_that_its_outputs_do_not_need(bundle: Bundle):
    for file in graph_files(bundle):
        model = load(bundle, file.name)
        used = {name for node in model.graph.node for name in node.input}
        wanted = used | {value.name for value in model.graph.output}
        assert all(wanted.intersection(node.output) for node in model.graph.node)
        assert {tensor.name for tensor in model.graph.initializer} <= used
        called = {node.op_type for node in model.graph.node if node.domain == "edgeadapt"}
        assert {function.name for function in model.functions} == called


def test_weights_are_stored_once(bundle: Bundle):
    model = load(bundle, "restore.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = {row.name: row.size for row in bundle.manifest.parameters}
    outside = {name for name, tensor in stored.items() if tensor.external_data}
    assert outside == {name for name in sizes if "auxiliary" not in name}
    for name in outside:
        assert not stored[name].raw_data
        assert not stored[name].float_data
    data = 4 * sum(sizes.values())
    assert 0 < (bundle.path / WEIGHTS).stat().st_size - data < 100 * len(sizes) + 100
    # Constants of the graphs themselves are small: sizes, factors, a filter.
    for file in graph_files(bundle):
        constants = [t for t in load(bundle, file.name).graph.initializer if not t.external_data]
        assert sum(tensor.ByteSize() for tensor in constants) < 4000


def test_the_weights_are_the_networks_bit_for_bit(bundle: Bundle):
    network = deblur()
    flat, where = bundle.weights(), bundle.offsets()
    for name, value in float32_weights(network).items():
        assert flat[where[name]].tobytes() == value.tobytes()
    groups = {n: group for group, names in network.parameter_groups().items() for n in names}
    assert {row.name: row.group for row in bundle.manifest.parameters} == groups


def test_scopes_hold_the_parameters_they_name(bundle: Bundle):
    names = [row.name for row in bundle.manifest.parameters]
    heads = [row.name for row in bundle.manifest.parameters if row.group != "shared"]
    scopes = {scope.name: list(scope.parameters) for scope in bundle.manifest.scopes}
    assert scopes["all"] == names
    assert scopes["heads"] == heads
    assert 0 < len(heads) < len(names)
    assert scopes["bias"] == [name for name in names if name.endswith(".bias")]
    assert scopes["encoder"] == [n for n in names if re.search(r"encode_\d.*weight", n)]
    for name, parameters in scopes.items():
        outputs = [value.name for value in load(bundle, f"adapt.{name}.onnx").graph.output]
        assert outputs[3:] == [f"grad.{parameter}" for parameter in parameters]


def test_frozen_parameters_have_no_backward(bundle: Bundle):
    every = functions_called(load(bundle, "adapt.all.onnx"))
    heads = functions_called(load(bundle, "adapt.heads.onnx"))
    bias = functions_called(load(bundle, "adapt.bias.onnx"))
    weights = [row for row in bundle.manifest.parameters if row.name.endswith("weight")]
    of_heads = [row for row in weights if row.group != "shared"]
    scales = SMALL["n_scales"]  # the scales share their weights, so each is used twice
    assert every["ConvWeightGrad"] == scales * len(weights)
    assert heads["ConvWeightGrad"] == scales * len(of_heads)
    assert bias["ConvWeightGrad"] == 0
    # From the loss through the auxiliary head and "mix" to the primary head, and no further.
    assert heads["ConvInputGrad"] == scales * 2
    assert bias["ConvInputGrad"] > heads["ConvInputGrad"]
    assert functions_called(load(bundle, "loss.onnx")) == Counter()


def test_the_chosen_scope_is_pruned_too(bundle: Bundle):
    chosen = functions_called(load(bundle, "adapt.encoder.onnx"))["ConvWeightGrad"]
    every = functions_called(load(bundle, "adapt.all.onnx"))["ConvWeightGrad"]
    assert 0 < chosen < every


def test_one_bundle_serves_every_size(bundle: Bundle):
    network, graphs = deblur(), Graphs(bundle)
    weights = float32_weights(network)
    for height, width in ((4, 4), (4, 44), (28, 4), (12, 20), (32, 32)):
        image, kinks = smooth_image(Reference(network), height, width)
        assert kinks == 0
        assert_step(graphs.run("adapt.all.onnx", image, weights), network, image)
        # The other graphs get the weights, this one reads them from their file.
        assert_step(graphs.run("restore.onnx", image), network, image)


def test_two_exports_are_the_same_bytes(bundle: Bundle, tmp_path: Path):
    again = export(deblur(), tmp_path / "again.bundle", SCOPES)
    for file in bundle.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("decoder", "decoder", "no parameter that the loss depends on matches 'decoder'"),
        ("mine", "^nothing$", "no parameter that the loss depends on matches '\\^nothing\\$'"),
        ("mine", "(", "is not a regular expression"),
        ("../mine", "weight", "must consist of letters"),
        ("", "weight", "must consist of letters"),
    ],
)
def test_a_scope_that_cannot_be(name: str, pattern: str, message: str, tmp_path: Path):
    with pytest.raises(ExportError, match=message):
        export(Around(torch.tanh), tmp_path / "x.bundle", {"all": "all", name: pattern})
    assert list(tmp_path.iterdir()) == []


def test_a_built_in_scope_without_parameters_is_left_out(tmp_path: Path):
    class Plain(nn.Module):
        """Without biases and without heads."""

        size_multiple = 1

        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv2d(3, 3, 3, padding=1, bias=False)

        def restore(self, image: torch.Tensor) -> torch.Tensor:
            return self.only(image)

        def adaptation_loss(self, image: torch.Tensor) -> torch.Tensor:
            return (self.restore(image) - image).square().mean()[None]

        def parameter_groups(self) -> dict[str, list[str]]:
            return {"shared": ["only.weight"]}

    found = export(Plain(), tmp_path / "x.bundle", {"all": "all", "heads": "heads", "bias": "bias"})
    assert [scope.name for scope in found.manifest.scopes] == ["all"]


def test_a_parameter_that_the_loss_does_not_reach_is_in_no_scope(tmp_path: Path):
    network = Around(torch.tanh)
    network.unused = nn.Parameter(torch.ones(2))
    shared = type(network).parameter_groups(network)
    assert "unused" in shared["shared"]
    found = export(network, tmp_path / "x.bundle", {"all": "all", "heads": "heads"})
    assert "unused" in [row.name for row in found.manifest.parameters]
    assert all("unused" not in scope.parameters for scope in found.manifest.scopes)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_and_no_bundle_stays(kind: str, tmp_path: Path):
    place = tmp_path / "photos"
    kept = place if kind == "file" else place / "holiday.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(ExportError, match="exists and is not a bundle"):
        export(Around(torch.tanh), place)
    assert kept.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == sorted({place, kept})


def test_an_empty_folder_is_used(tmp_path: Path):
    (tmp_path / "x.bundle").mkdir()
    assert export(Around(torch.tanh), tmp_path / "x.bundle").path == tmp_path / "x.bundle"


@pytest.mark.parametrize("stage", ["trace", "lower", "save_file", "cut", "write_manifest"])
def test_a_failed_export_leaves_the_old_bundle(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "x.bundle"
    old = export(Around(torch.tanh), place)
    before = {file.name: file.read_bytes() for file in place.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(exporter, stage, fail)
    with pytest.raises(OSError, match="no space left"):
        export(Around(torch.sigmoid), place)
    with pytest.raises(OSError, match="no space left"):
        export(Around(torch.sigmoid), tmp_path / "new.bundle")
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.bundle"]
    assert open_bundle(place).manifest == old.manifest


def test_a_bundle_replaces_a_bundle(tmp_path: Path):
    place = tmp_path / "x.bundle"
    export(Around(torch.tanh), place, {"all": "all", "heads": "heads"})
    export(Around(torch.tanh), place)
    assert not (place / "adapt.heads.onnx").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["x.bundle"]


def test_progress_names_the_stages(tmp_path: Path):
    stages: list[str] = []
    export(Around(torch.tanh), tmp_path / "x.bundle", progress=stages.append)
    assert stages == [
        "tracing forward and backward pass",
        "lowering to ONNX",
        "writing weights and graphs",
    ]


@pytest.mark.slow
def test_the_edge_network_is_exported_in_time_and_space(tmp_path: Path):
    network = build(preset="edge")
    options = ExportOptions(
        Model("edge", "", "edgeadapt.training.network:build", {"preset": "edge"}),
        Adaptation(5, "sgd", 1e-5),
    )
    start = time.process_time()  # of this process: what else the machine does is left out
    found = export_bundle(network, tmp_path / "edge.bundle", options)
    seconds = time.process_time() - start
    size = sum(file.stat().st_size for file in found.path.iterdir())
    weights = 4 * sum(value.numel() for value in network.parameters())
    assert seconds < 60
    assert size <= 1.2 * weights + 3e6
