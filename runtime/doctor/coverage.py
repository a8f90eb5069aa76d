"""What code runs on which GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from edgeadapt.runtime.doctor.fatbin import Held, split

Capability = tuple[int, int]
# Machine code for the GPU; for one of its generation, of which one is beside a Tegra processor;
# PTX that a driver compiles for it; nothing that it can run.
Coverage = Literal["sass", "related", "ptx", "none"]

# GPUs beside a Tegra processor: code for others of their generation is not promised to run there.
# Up to CUDA 12 it does not; of CUDA 13 on Orin there are reports that it does.
TEGRA = frozenset({53, 62, 72, 87, 101, 110})
# CUDA that a driver must know for a version of PTX's language; 9.x is 13.x, and so on.
_LANGUAGES: Mapping[tuple[int, int], tuple[int, int]] = {
    (8, 5): (12, 5),
    (8, 6): (12, 7),
    (8, 7): (12, 8),
    (8, 8): (12, 9),
}


def coverage(held: Held, capability: Capability) -> Coverage:
    """The best that there is for a GPU of this compute capability."""
    wanted = 10 * capability[0] + capability[1]
    found = {_runs(*split(name), wanted) for name in held.sass}
    if "sass" in found:
        return "sass"
    if any(_compiles(*split(name), wanted) for name in held.ptx):
        return "ptx"
    return "related" if "related" in found else "none"


def _runs(number: int, suffix: str, wanted: int) -> Coverage:
    if number == wanted:
        return "sass"
    if suffix == "a" or number // 10 != wanted // 10 or number > wanted:
        return "none"
    return "related" if number in TEGRA or wanted in TEGRA else "sass"


def _compiles(number: int, suffix: str, wanted: int) -> bool:
    if number == wanted or (not suffix and number < wanted):
        return True
    return suffix == "f" and number // 10 == wanted // 10 and number < wanted


def cuda_of(language: tuple[int, int]) -> tuple[int, int]:
    """The CUDA whose drivers know this version of PTX's language."""
    major, minor = language
    return _LANGUAGES.get(language, (major + 4, minor))
