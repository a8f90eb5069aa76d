"""How csrc/conv_weight_grad.cuh cuts a weight gradient into blocks, tiles and warps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from edgeadapt.kernels.cuda.tensors import DTYPES

Two = tuple[int, int]

# The constants of csrc/conv_weight_grad.cuh.
MAX_SOURCES: Final = 4
THREADS: Final = 256
WARPS: Final = 8
UNIT: Final = 8  # channels
SKEW: Final = 2
SPAN: Final = 16  # words of grad_y in a row of a tile
WARP_SIDE: Final = 16  # channels of a warp on either side
REACH: Final = 3  # taps of a warp along either axis
SHARED_WORDS: Final = 12_160
SUM_THREADS: Final = 32  # sums of a block of conv_weight_grad_sum

MOST_TILE_ROWS: Final = 16
ENOUGH_TILE_ROWS: Final = 4  # fewer read the halo too often
# Blocks in flight: two on each of the 132 processors of an H200, of which many take one at least;
# a Jetson has 8 to 20 processors. The same on every device, so that results are the same too.
MOST_BLOCKS: Final = 256
ENOUGH_BLOCKS: Final = 128
# Between these, partial sums take no more than this part of what is read.
PARTS_SHARE: Final = 1 / 16


@dataclass(frozen=True)
class Problem:
    """What is asked: channels are those of a group, sizes are (height, width)."""

    inputs: int
    outputs: int
    group: int
    kernel: Two
    strides: Two
    pads: Two
    dilations: Two
    x_size: Two
    grad_size: Two
    dtypes: tuple[int, ...]  # of the images x and of grad_y

    @property
    def bytes_read(self) -> int:
        """Of x and grad_y, as if all were of the widest type."""
        size = 4 if DTYPES["f32"] in self.dtypes else 2
        pixels = self.inputs * prod(self.x_size) + self.outputs * prod(self.grad_size)
        return size * self.group * pixels

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return self.group * self.outputs * self.inputs * prod(self.kernel)


@dataclass(frozen=True)
class Plan:
    """Fields of `ConvWeightGradArgs` that are chosen."""

    kernel: str
    taps: Two
    block: Two  # channels of grad_y and x
    blocks: Two  # of a group
    rectangles: int  # of taps
    tile_rows: int
    window: Two
    pixel_steps: Two
    word_steps: Two
    tap_steps: Two
    tiles: Two
    chunks: int
    meets_all_of_x: bool  # each pixel of x is in some tile


def kernel_for(problem: Problem, compute: str) -> str:
    """The type that is multiplied in: "f32" on CUDA cores, the others on tensor cores."""
    if min(problem.inputs, problem.outputs) < UNIT:
        return "f32"
    names = {code: name for name, code in DTYPES.items()}
    types = {names[code] for code in problem.dtypes}
    return compute if len(types) > 1 or types == {"f32"} else types.pop()


def plan(problem: Problem, compute: str, most_chunks: int | None = None) -> Plan:
    """Large blocks first, with all taps; where shared memory ends, fewer channels, then taps."""
    rows = min(MOST_TILE_ROWS, -(-problem.grad_size[0] // 2) * 2)
    taps, block = problem.kernel, (WARP_SIDE, WARP_SIDE)
    for block in _blocks(problem):
        if _fits(problem, taps, block, min(rows, ENOUGH_TILE_ROWS)):
            break
    else:
        taps = next(taps for taps in _rectangles(taps) if _fits(problem, taps, block, 2))
    while not _fits(problem, taps, block, rows):
        rows -= 2
    blocks = (-(-problem.outputs // block[0]), -(-problem.inputs // block[1]))
    rectangles = prod(-(-k // t) for k, t in zip(problem.kernel, taps, strict=True))
    columns = SPAN * (2 if compute in ("f16", "bf16") else 1)
    tiles = (-(-problem.grad_size[0] // rows), -(-problem.grad_size[1] // columns))
    separate = problem.group * prod(blocks) * rectangles
    single = tuple(t == 1 for t in taps)
    steps = problem.strides
    whole = compute != "f32" and taps == problem.kernel == (3, 3)
    whole = whole and steps == problem.dilations == (1, 1)
    return Plan(
        kernel=f"conv_weight_grad_{compute}{'_3x3' if whole else ''}",
        taps=taps,
        block=block,
        blocks=blocks,
        rectangles=rectangles,
        tile_rows=rows,
        window=_window(problem, taps, rows),
        pixel_steps=(steps[0] if single[0] else 1, steps[1] if single[1] else 1),
        word_steps=(1 if single[0] else steps[0], 1 if single[1] else steps[1]),
        tap_steps=problem.dilations,
        tiles=tiles,
        chunks=min(prod(tiles), most_chunks or _chunks(problem, separate)),
        meets_all_of_x=rectangles == 1 and all(_meets_all(problem, axis) for axis in (0, 1)),
    )


def _chunks(problem: Problem, separate: int) -> int:
    """Into how many the image is cut if ``separate`` blocks work on each."""
    parts = int(PARTS_SHARE * problem.bytes_read / (4 * problem.weights))
    return max(-(-ENOUGH_BLOCKS // separate), min(-(-MOST_BLOCKS // separate), parts))


def _meets_all(problem: Problem, axis: int) -> bool:
    """Whether each row (column) of x is in the window of some tile, without gaps between them."""
    stride, pad = problem.strides[axis], problem.pads[axis]
    reach = (problem.kernel[axis] - 1) * problem.dilations[axis]
    last = (problem.grad_size[axis] - 1) * stride + reach - pad
    return reach + 1 >= stride and pad >= 0 and last >= problem.x_size[axis] - 1


def _blocks(problem: Problem) -> Iterator[Two]:
    """Channels of a block, on both sides."""
    sides = (2 * WARP_SIDE, WARP_SIDE)
    for largest in ((0, 0), (1, 0), (0, 1), (1, 1)):
        channels = (min(sides[i], n) for i, n in zip(largest, _channels(problem), strict=True))
        out, into = (-(-n // UNIT) * UNIT for n in channels)
        yield out, into


def _channels(problem: Problem) -> Two:
    return problem.outputs, problem.inputs


def _rectangles(taps: Two) -> Iterator[Two]:
    for rows in range(taps[0], 0, -1):
        yield rows, taps[1]
    for columns in range(taps[1] - 1, 0, -1):
        yield 1, columns


def _window(problem: Problem, taps: Two, rows: int) -> Two:
    """Rows and columns of words of x in a tile."""
    counts = zip((rows, SPAN), taps, problem.strides, problem.dilations, strict=True)
    height, width = ((n - 1) * (s if t > 1 else 1) + (t - 1) * d + 1 for n, t, s, d in counts)
    return height, width


def _fits(problem: Problem, taps: Two, block: Two, rows: int) -> bool:
    """Whether a block has warps for all it does, and a tile fits into shared memory."""
    pieces = prod(-(-n // WARP_SIDE) for n in block) * prod(-(-t // REACH) for t in taps)
    words = prod(_window(problem, taps, rows)) * (block[1] + SKEW)
    return pieces <= WARPS and words + rows * SPAN * (block[0] + SKEW) <= SHARED_WORDS
