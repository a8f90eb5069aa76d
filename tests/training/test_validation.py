"""The score that decides which checkpoint is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgeadapt.blur import Pair
from edgeadapt.testing import photo
from edgeadapt.training.data import to_tensor
from edgeadapt.training.validation import validate


class Fixed:
    """Restores every image as what it was made with."""

    def __init__(self, **restored: np.ndarray) -> None:
        self._restored = restored

    def restore(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: to_tensor([frame]) for name, frame in self._restored.items()}


def off_by(levels: int, values: int) -> np.ndarray:
    """The photo (300, 400, 3) with its first ``values`` values off by so many levels."""
    frame = photo(0, 300, 400).copy()
    flat = frame.reshape(-1)
    flat[:values] = np.where(flat[:values] < 128, flat[:values] + levels, flat[:values] - levels)
    return frame


def test_the_score_is_the_mean_psnr_and_stays_finite() -> None:
    sharp = photo(0, 300, 400)
    count = sharp.size
    stage = Fixed(equal=sharp, near=off_by(1, 1), far=off_by(5, count // 2), psnr=off_by(9, count))
    scores = validate(stage, [Pair(sharp, sharp)] * 2, torch.device("cpu"))
    assert scores["far"] == pytest.approx(10 * math.log10(255**2 / (5**2 * (count // 2) / count)))
    assert scores["psnr"] == pytest.approx(10 * math.log10(255**2 / 9**2))
    # One value that is off by one must not score more than none: it is 103.7 dB.
    assert scores["equal"] == scores["near"] == 100.0
