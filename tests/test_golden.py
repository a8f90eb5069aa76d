"""Every bundle ever frozen is still read, and gives what it gave; `tools/golden.py` froze them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeadapt import Session
from edgeadapt.bundle import FORMAT_VERSION
from edgeadapt.image import read_image

ARTIFACTS = Path(__file__).parent / "artifacts"
VERSIONS = sorted(path.name for path in ARTIFACTS.iterdir() if path.is_dir())


def test_every_format_version_has_a_frozen_bundle() -> None:
    assert [f"v{version}" for version in range(1, FORMAT_VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_frozen_bundle_gives_what_it_gave(version: str) -> None:
    folder = ARTIFACTS / version
    image = read_image(folder / "image.png")
    losses = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    with Session(folder / "golden.bundle") as session:
        # Another processor sums in another order, which can turn one grey level into the next.
        assert_same(session.restore(image), folder / "restored.png")
        for scope, expected in losses.items():
            session.reset()
            np.testing.assert_allclose(
                session.adapt(image, scope=scope).losses, expected, rtol=1e-5
            )
            assert_same(session.restore(image), folder / f"adapted-{scope}.png")
            assert expected[-1] < expected[0], "a loss that does not move would show nothing"


def assert_same(image: np.ndarray, file: Path) -> None:
    expected = read_image(file).astype(int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 1
