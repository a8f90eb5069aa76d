"""Families of operators, each in a tiny network that is exported and held to PyTorch in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from torch import nn

import support.spatial_networks  # noqa: F401  registers more of them
from edgeadapt.export import exporter
from edgeadapt.export.lowering import lowerings, operator_name
from edgeadapt.export.trace import Trace, trace
from support.exporting import assert_exported
from support.pointwise_networks import NETWORKS


@cache
def traced(name: str) -> tuple[nn.Module, Trace]:
    """A network and its trace, which takes most of the time of its export."""
    made = NETWORKS[name]()
    return made, trace(made)


@pytest.mark.parametrize("name", NETWORKS)
def test_operators(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, found = traced(name)
    monkeypatch.setattr(exporter, "trace", lambda _: found)
    assert_exported(made, tmp_path / "x.bundle")


def test_every_lowering_is_tested():
    used = {
        operator_name(node)
        for name in NETWORKS
        for node in traced(name)[1].graph.nodes
        if node.op == "call_function"
    }
    assert used == lowerings().keys()
