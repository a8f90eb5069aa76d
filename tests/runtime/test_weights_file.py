"""Adapted weights in a file, and every way such a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeadapt.errors import WeightsError
from edgeadapt.runtime.session import Session
from support.tiny_bundle import write_tiny_bundle


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 22, 3), dtype=np.uint8)


@pytest.fixture
def session(tiny: Path) -> Session:
    return Session(tiny)


def test_weights_go_to_a_file_and_come_back(session: Session, tiny: Path, tmp_path: Path) -> None:
    session.adapt(photo(), steps=2)
    adapted, restored = session.weights.copy(), session.restore(photo())
    session.save_weights(tmp_path / "camera.safetensors")
    session.reset()
    session.load_weights(tmp_path / "camera.safetensors")
    assert np.array_equal(session.weights, adapted)
    assert np.array_equal(session.restore(photo()), restored)
    with Session(tiny) as other:
        other.load_weights(tmp_path / "camera.safetensors")
        assert np.array_equal(other.weights, adapted)
    assert [path.name for path in tmp_path.iterdir()] == ["camera.safetensors"]


def test_weights_of_another_bundle_are_refused(
    session: Session, tmp_path: Path, tiny: Path
) -> None:
    other = Session(write_tiny_bundle(tmp_path / "other.bundle", seed=1))
    other.save_weights(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"comes from another.*tiny.bundle"):
        session.load_weights(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not say which bundle"):
        session.load_weights(tiny / "weights.safetensors")
    assert np.array_equal(session.weights, session.bundle.weights())


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64])
def test_a_damaged_weights_file_is_refused(
    session: Session, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a safetensors file"):
        session.load_weights(tmp_path / "x")
    with pytest.raises(WeightsError, match="cannot be read"):
        session.load_weights(tmp_path / "absent")


def test_weights_that_do_not_fit_the_table_are_refused(session: Session, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    session.save_weights(tmp_path / "x")
    metadata = {
        "edgeadapt.bundle_weights_sha256": session.bundle.manifest.files["weights.safetensors"]
    }
    tensors = load_file(tmp_path / "x")
    for change, message in (
        ({"tail.bias": np.zeros(4, np.float32)}, r"'tail.bias' must be.*float32 \(4,\)"),
        ({"tail.bias": np.zeros(3, np.int32)}, r"got int32"),
        ({"tail.bias": np.full(3, np.nan, np.float32)}, "finite"),
        ({"more": np.zeros(3, np.float32)}, "'more' is in only one"),
    ):
        save_file({**tensors, **change}, tmp_path / "x", metadata)
        with pytest.raises(WeightsError, match=message):
            session.load_weights(tmp_path / "x")


def test_an_unwritable_weights_file(session: Session, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        session.save_weights(tmp_path / "no" / "x")
