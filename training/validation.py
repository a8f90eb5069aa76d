"""Quality on the validation pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edgeadapt.blur import Pair
from edgeadapt.testing import psnr
from edgeadapt.training.data import to_frame, to_tensor
from edgeadapt.training.stage import Stage

_HIGHEST = 100.0  # dB


def validate(stage: Stage, pairs: Sequence[Pair], device: torch.device) -> dict[str, float]:
    """Mean over the images of the PSNR in dB, on 8-bit RGB, of each way to restore them.

    An image counts for at most 100 dB, so that the mean stays finite when one is restored exactly.
    """
    scores: dict[str, list[float]] = {}
    for pair in pairs:
        for name, image in stage.restore(to_tensor([pair.blurred]).to(device)).items():
            score = min(psnr(to_frame(image[0]), pair.sharp), _HIGHEST)
            scores.setdefault(name, []).append(score)
    return {name: float(np.mean(values)) for name, values in scores.items()}
