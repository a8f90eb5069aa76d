"""Work on many runs of elements in one launch: csrc/segments.cuh."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

THREADS: Final = 256
_BLOCK: Final = 1024  # elements of a block


class Table(NamedTuple):
    """What a launch reads from device memory: upload ``rows.tobytes()``."""

    rows: npt.NDArray[Any]  # one for each run of elements
    blocks: int  # of all of them


def first_blocks(counts: I64) -> tuple[I64, int]:
    """Of runs of so many elements, which block is the first of each, and how many there are."""
    ends = np.cumsum(-(-counts // _BLOCK), dtype=np.int64)
    return np.append(0, ends[:-1])[: counts.size], int(ends[-1]) if counts.size else 0
