"""TensorRT among the peers on a GPU, played by ONNX Runtime on a device of host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.benchmarks import cuda_bench
from edgeadapt.benchmarks.cuda_peers import precision_of
from edgeadapt.benchmarks.peers import RuntimePeer, Work
from edgeadapt.benchmarks.tensorrt_peer import TensorrtPeer, tensorrt_names
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.image import to_network
from edgeadapt.runtime.tensorrt.library import Library
from edgeadapt.testing import assert_gradient_close, photo
from support.fake_tensorrt import Fake
from support.host_device import HostDevice
from support.tiny_bundle import write_tiny_bundle

HEIGHT, WIDTH = 16, 32


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle() -> Bundle:
    return open_bundle("nano")


def opened(bundle: Bundle, scope: str, fake: Fake) -> TensorrtPeer:
    picture, library = photo(0, HEIGHT, WIDTH), Library("tensorrt", fake)
    with pytest.warns(match="builds an engine"):
        return TensorrtPeer(bundle, picture, scope, 3, "fp32", HostDevice(), library)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_through_an_engine_are_those_of_the_native_engine(
    tmp_path: Path, optimizer: str
) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny.bundle", optimizer=optimizer)
    fake = Fake()
    tiny = open_bundle(folder)
    found = opened(tiny, "all", fake)
    image = to_network(photo(0, HEIGHT, WIDTH), tiny.manifest.image.size_multiple)
    expected = RuntimePeer(tiny, "native", image, "all", threads=1)
    for _ in range(3):  # the second and third see what the ones before have done to the weights
        losses = found.step(), expected.step()
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        other = expected.gradients()
        for name, value in found.gradients().items():
            assert_gradient_close(value, other[name], 1e-4, name)
    np.testing.assert_allclose(found.restore(), expected.restore(), atol=1e-5)
    seconds = found.seconds("step")
    assert seconds is not None
    assert seconds > 0
    assert found.seconds("adapt") is None
    assert fake.complaints == []
    found.close()
    assert fake.opened == 0


def test_all_steps_are_one_recorded_graph(bundle: Bundle) -> None:
    fake = Fake()
    found = opened(bundle, "heads", fake)
    found.seconds("step")
    asked, ran = found._device.asked["graph"], len(fake.ran)
    found.seconds("step")
    assert found._device.asked["graph"] == asked + 1
    assert len(fake.ran) == ran + 3
    found.close()


def test_it_gets_rows_where_it_is_installed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_bench, "_gpu", HostDevice)
    monkeypatch.setattr(cuda_bench, "our_names", lambda: ["cuda"])
    monkeypatch.setattr(cuda_bench, "tensorrt_names", lambda: ["tensorrt", "tensorrt fp16"])
    work = Work("nano", HEIGHT, WIDTH, "heads", 1, "")

    def measured() -> set[tuple[str, str]]:
        rows = cuda_bench.measure(bundle, [work], steps=2, repeats=1, ways=[])
        return {(row["peer"], row["operation"]) for row in rows if row["peer"] != "cuda"}

    def missing() -> Any:
        raise BackendError("TensorRT is not installed.")

    monkeypatch.setattr(cuda_bench, "find_library", missing)
    assert measured() == set()
    assert "left out" not in capsys.readouterr().err
    fake = Fake()
    monkeypatch.setattr(cuda_bench, "find_library", lambda: Library("tensorrt", fake))
    with pytest.warns(match="builds an engine"):
        found = measured()
    operations = ("step", "restore", "upload", "download")
    assert found == {(n, o) for n in ("tensorrt", "tensorrt fp16") for o in operations}
    fake.faults.add("open")
    assert measured() == set()
    assert "tensorrt is left out: TensorRT 10.3.0.30 does not open" in capsys.readouterr().err
    rtx = Library("tensorrt-rtx", Fake("rtx"))
    monkeypatch.setattr(cuda_bench, "find_library", lambda: rtx)
    assert measured() == set()
    assert "tensorrt is left out: TensorRT-RTX 1.7.1.116 builds for" in capsys.readouterr().err


def test_names_say_what_is_computed_in() -> None:
    assert [precision_of(name) for name in tensorrt_names()] == ["fp32", "tf32", "fp16", "bf16"]
