"""Quality on the validation pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio

from edgeadapt.blur import Pair
from edgeadapt.training.data import to_frame, to_tensor
from edgeadapt.training.stage import Stage


def validate(stage: Stage, pairs: Sequence[Pair], device: torch.device) -> dict[str, float]:
    """Mean over the images of the PSNR in dB, on 8-bit RGB, of each way to restore them."""
    scores: dict[str, list[float]] = {}
    for pair in pairs:
        for name, image in stage.restore(to_tensor([pair.blurred]).to(device)).items():
            scores.setdefault(name, []).append(psnr(pair.sharp, to_frame(image[0])))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def psnr(sharp: np.ndarray, restored: np.ndarray) -> float:
    """PSNR in dB of uint8 images; 100 dB for equal ones, so that a mean stays finite."""
    if np.array_equal(sharp, restored):
        return 100.0
    return float(peak_signal_noise_ratio(sharp, restored))
