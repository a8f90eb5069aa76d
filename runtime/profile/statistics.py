"""What repeated measurements come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Measurements of one thing, in the unit they were given in."""

    count: int
    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: tuple[tuple[float, float], ...]  # (percent, value), as they were asked for
    variation: float  # standard deviation over mean; 0 if the mean is 0


def spread(values: Sequence[float], percents: Sequence[float] = ()) -> Spread:
    """Sum up measurements.

    A percentile is a measured value: the least that at least so many percent do not exceed, as
    trtexec has it.

    Raises:
        ValueError: without values, or for a percentile outside of 0 to 100.
    """
    if not len(values):
        raise ValueError("there is nothing to sum up")
    array = np.asarray(values, np.float64)
    found = np.percentile(array, list(percents), method="inverted_cdf")
    mean = float(array.mean())
    return Spread(
        count=array.size,
        minimum=float(array.min()),
        maximum=float(array.max()),
        mean=mean,
        median=float(np.median(array)),
        percentiles=tuple(zip(percents, found.tolist(), strict=True)),
        variation=float(array.std()) / mean if mean else 0.0,
    )
