"""What a device is asked to do: launches of kernels, as data."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod

from edgeadapt.errors import ArrayError

Extent = tuple[int, int, int]  # x, y, z
MAX_GRID: Extent = (2**31 - 1, 65_535, 65_535)
MAX_THREADS = 1024  # of a block
MAX_ARGUMENT_BYTES = 4000  # what every architecture takes by value


@dataclass(frozen=True)
class Launch:
    """One kernel over a grid of blocks; ``arguments`` is its only parameter, passed by value.

    Raises:
        ArrayError: if a grid, a block or the arguments are larger than a device takes.
    """

    kernel: str  # its name in csrc/*.cu
    grid: Extent
    block: Extent
    arguments: ctypes.Structure

    def __post_init__(self) -> None:
        for name, extent, most in (
            ("grid", self.grid, MAX_GRID),
            ("block", self.block, (MAX_THREADS, MAX_THREADS, 64)),
        ):
            if any(not 1 <= n <= limit for n, limit in zip(extent, most, strict=True)):
                raise ArrayError(f"{self.kernel}: a {name} must be 1 to {most}, got {extent}.")
        if prod(self.block) > MAX_THREADS:
            raise ArrayError(
                f"{self.kernel}: a block has up to {MAX_THREADS} threads, got {self.block}."
            )
        if ctypes.sizeof(self.arguments) > MAX_ARGUMENT_BYTES:
            raise ArrayError(
                f"{self.kernel}: arguments take up to {MAX_ARGUMENT_BYTES} bytes, "
                f"got {ctypes.sizeof(self.arguments)}."
            )


@dataclass(frozen=True)
class Work:
    """Launches that run one after the other, and the device memory they need meanwhile.

    A launcher called without the address of that memory says how much it is; its launches are
    complete only if it was given.
    """

    launches: tuple[Launch, ...]
    scratch_bytes: int = 0
