"""A photo adapted to and restored by the CUDA engine in each precision, and by the CPU's.

python tools/gpu_smoke.py fp32 fp16            prints a line for each; ends with 1 if one is off
python tools/gpu_smoke.py --small fp32         for tools that watch every access
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt

from edgeadapt.runtime.session import Session
from edgeadapt.testing import photo

# How many dB the restored image may be from the CPU's, measured against the photo; and how far the
# first loss, relative. One step of 8 bits everywhere would be 0.03 dB at 40 dB.
BOUNDS = {"fp32": (0.01, 1e-5), "tf32": (0.05, 1e-2), "fp16": (0.05, 1e-2), "bf16": (0.2, 5e-2)}


def main() -> int:
    """Check the precisions that are named; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("precisions", nargs="+", choices=BOUNDS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--backend", default="cuda")
    arguments = parser.parse_args()
    height, width, steps = (48, 80, 1) if arguments.small else (240, 336, 5)
    sharp = photo(0, height, width)
    blurred = blur(sharp)
    expected, first = adapted("native", "fp32", blurred, steps)
    bad = 0
    for precision in arguments.precisions:
        found, loss = adapted(arguments.backend, precision, blurred, steps)
        apart = abs(psnr(found, sharp) - psnr(expected, sharp))
        wrong = abs(loss - first) / first
        good = apart <= BOUNDS[precision][0] and wrong <= BOUNDS[precision][1]
        verdict = "within bounds" if good else "OUT OF BOUNDS"
        print(f"{precision}: {apart:.4f} dB from the CPU, loss off by {wrong:.1e}, {verdict}")
        bad += not good
    return 1 if bad else 0


def adapted(
    backend: str, precision: str, image: npt.NDArray[np.uint8], steps: int
) -> tuple[npt.NDArray[np.uint8], float]:
    """The image after so many steps, and the loss before them."""
    with Session("nano", backend, precision=precision) as session:  # type: ignore[arg-type]
        done = session.adapt(image, steps)
        return session.restore(image), done.losses[0]


def blur(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mean of seven neighbours in a row."""
    padded = np.pad(image.astype(np.float32), ((0, 0), (3, 3), (0, 0)), "edge")
    width = image.shape[1]
    mean = sum(padded[:, shift : shift + width] for shift in range(7)) / 7
    return np.asarray(np.rint(mean), np.uint8)


def psnr(image: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.mean((image.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


if __name__ == "__main__":
    sys.exit(main())
