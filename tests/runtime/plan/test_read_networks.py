"""Whole networks, exported and read: the programs compute what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import pytest

import support.spatial_networks  # noqa: F401  registers more of them
from edgeadapt.bundle import open_bundle
from support.exporting import export
from support.pointwise_networks import NETWORKS
from support.reading import assert_read
from support.tiny_bundle import write_tiny_bundle
from support.user_networks import BODIES, LOSSES, Network

SIZE = (3, 1)


def test_the_default_bundle():
    assert_read(open_bundle("nano"), 1, 2)


def test_a_bundle_with_the_gradient_written_in_standard_operators(tmp_path: Path):
    assert_read(open_bundle(write_tiny_bundle(tmp_path / "tiny.bundle")), 2, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_operators(name: str, tmp_path: Path):
    assert_read(export(NETWORKS[name](), tmp_path / "x.bundle"), *SIZE)


@pytest.mark.parametrize("name", BODIES)
def test_networks_of_users(name: str, tmp_path: Path):
    assert_read(export(Network(BODIES[name]()), tmp_path / "x.bundle"), *SIZE)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_users(name: str, tmp_path: Path):
    body = BODIES["instance norm"]()
    assert_read(export(Network(body, LOSSES[name]), tmp_path / "x.bundle"), *SIZE)
