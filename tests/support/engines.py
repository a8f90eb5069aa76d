"""Engines that TensorRT-RTX builds without a GPU, and what can be said of them there."""

from __future__ import annotations

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.tensorrt.build import Engine, Request, build_engine
from edgeadapt.runtime.tensorrt.library import Capability, Library
from edgeadapt.runtime.tensorrt.models import Weights

SIZE = (16, 32)  # the engine of a large image is built as fast
TARGETS: tuple[Capability, Capability] = ((8, 6), (12, 0))


def built(bundle: Bundle, library: Library, target: Capability, request: Request) -> Engine:
    """A new engine, which says for what it is."""
    engine = build_engine(bundle, request, library, target)
    assert engine.header.key.target == "sm_{}{}".format(*target)
    assert engine.header.key.device == ""
    assert not engine.kept
    return engine


def check_restoring(
    bundle: Bundle, library: Library, precision: Precision, weights: Weights
) -> None:
    """Build the restore graph for two architectures; what the engines take and give is right."""
    request = Request(SIZE, precision, weights)
    engines = [built(bundle, library, target, request) for target in TARGETS]
    assert engines[0].plan != engines[1].plan
    shapes = {row.name: row.shape for row in bundle.manifest.parameters}
    for engine in engines:
        tensors = {tensor.name: tensor for tensor in engine.header.tensors}
        assert {tensor.dtype for tensor in tensors.values()} == {"float32"}
        assert tensors.pop("image").shape == tensors.pop("restored").shape == (1, 3, *SIZE)
        assert engine.header.parameters == tuple(name for name in shapes if name in tensors)
        assert {n: t.shape for n, t in tensors.items()} == {n: shapes[n] for n in tensors}
        # All but those of the auxiliary branch's end, which only the loss needs; or none.
        needed = {name for name in shapes if ".auxiliary." not in name}
        assert tensors.keys() == (needed if weights == "inputs" else set())
