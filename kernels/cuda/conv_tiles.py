"""Which tiled convolution kernel of csrc/conv_*.cu computes a convolution, and in which tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from edgeadapt.kernels.cuda.conv_geometry import Axis, ConvSpec
from edgeadapt.kernels.cuda.launch import MAX_GRID
from edgeadapt.kernels.cuda.tensors import ImageArgs

# That keep the largest device busy: with fewer, all run at once.
ENOUGH_BLOCKS = 256
# Products of numbers that exist, of those that tensor cores compute, from which on they are faster:
# they multiply 8 (Orin) to 15 times (H200) as fast.
LEAST_USE = 1 / 8
# What takes as long as to bring a byte to shared memory, counted in instructions: products of a
# chunk of channels (16 of f16, 8 of others) with one weight each.
PRODUCTS_PER_BYTE = {True: 3.0, False: 1 / 6}  # with tensor cores, without


@dataclass(frozen=True)
class Tile:
    """What a block works on: positions, and ``parts`` times the kernel's channels."""

    rows: int
    columns: int
    parts: int
    window: tuple[int, int]  # rows and columns of the input that its positions see

    @property
    def pixels(self) -> int:
        """Of the window."""
        return prod(self.window)

    def blocks(self, rows: Axis, columns: Axis) -> tuple[int, int]:
        """How many tiles there are, down and across."""
        return -(-rows.positions // self.rows), -(-columns.positions // self.columns)


@dataclass(frozen=True)
class Family:
    """A kernel; see csrc/conv_mma.cuh and conv_direct.cu."""

    name: str
    tensor_cores: bool
    channels: int  # of a warp, or of a thread
    shared_taps: int  # 3 or 1
    unit: int  # channels of the input that are read at once

    @property
    def kernel(self) -> str:
        """Its name."""
        return f"conv_{self.name}_{self.shared_taps}_{self.channels}"

    @property
    def copies(self) -> bool:
        """Whether what is multiplied can be the bytes in memory: float32 is rounded to tf32."""
        return self.name in ("f16", "bf16")

    @property
    def channels_at_once(self) -> int:
        """Of y and the operands, which a thread reads or writes together."""
        return self.channels // 4 if self.tensor_cores else self.channels

    def threads(self, tile: Tile) -> int:
        """Of a block."""
        return tile.rows * tile.columns * tile.parts // (2 if self.tensor_cores else 4)

    def channel_blocks(self, outputs: int, tile: Tile) -> int:
        """How many blocks share a tile's positions, for ``outputs`` channels of a group."""
        return -(-outputs // (self.channels * tile.parts))

    def tiles(self, outputs: int, rows: Axis, columns: Axis) -> Iterator[Tile]:
        """All that a block may be made for."""
        parts = min(-(-outputs // self.channels), 2 if self.tensor_cores else 4)
        while parts:
            if self.tensor_cores:
                warps = ((4, 2), (2, 2), (2, 1), (1, 1))
                shapes = [(4 * down, 16 * across) for down, across in warps]
            else:
                shapes = [(n // parts, 32) for n in (32, 16, 8, 4) if n >= parts]
            for down, across in shapes:
                height = (down - 1) * rows.step + rows.span
                width = (across - 1) * columns.step + columns.span
                tile = Tile(down, across, parts, (height, width))
                if self.threads(tile) <= 256:
                    yield tile
            parts //= 2

    @property
    def pool_bytes(self) -> int:
        """Of shared memory."""
        return 32_768 if self.name == "direct" and self.shared_taps == 3 else 49_152

    def windows(self, tile: Tile, rows: Axis, columns: Axis, inputs: int) -> int:
        """2 if the next chunk of ``inputs`` channels is to be brought while one is multiplied."""
        ahead = self.copies and inputs > 2 * self.unit
        return 2 if ahead and self.shared_bytes(tile, rows, columns, 2) <= self.pool_bytes else 1

    def shared_bytes(self, tile: Tile, rows: Axis, columns: Axis, windows: int = 1) -> int:
        """Of a block: the windows and the weights of a chunk of channels."""
        if self.tensor_cores:  # weights of some rows of taps
            taps = self.shared_taps * columns.taps
            return 32 * (windows * tile.pixels + taps * tile.parts * self.channels)
        taps = rows.taps * columns.taps
        pitch = -(-tile.window[1] // 4) * 4
        plane = tile.window[0] * pitch // 8 * 8 + 12
        return 32 * (plane + taps * tile.parts * self.channels)


def choose(
    spec: ConvSpec,
    channels: tuple[int, int],
    rows: Axis,
    columns: Axis,
    sources: Sequence[ImageArgs],
    weights: int,
) -> tuple[Family, Tile] | None:
    """The kernel and the tile that take least time, or None: no block holds what it needs.

    ``channels`` are a group's of input and output, ``weights`` is the address of the packed ones.
    """
    for family in _families(spec, *channels, rows, columns, weights):
        fitting = [
            tile
            for tile in family.tiles(channels[1], rows, columns)
            if _fits(family, tile, rows, columns, sources)
        ]
        if fitting:
            times = [
                _time(family, tile, spec.group * channels[1], rows, columns) for tile in fitting
            ]
            return family, fitting[times.index(min(times))]
    return None


def _families(
    spec: ConvSpec, inputs: int, outputs: int, rows: Axis, columns: Axis, weights: int
) -> Iterator[Family]:
    """The kernels that may take it, fastest first."""
    depth = 8 if spec.compute == "tf32" else 16
    width = 8 if outputs <= 8 else 16 if outputs <= 16 else 32
    use = inputs / (-(-inputs // depth) * depth) * outputs / (-(-outputs // width) * width)
    if spec.compute != "f32" and use >= LEAST_USE and weights % 16 == 0:
        for taps in (3, 1) if rows.three_neighbours() else (1,):
            yield Family(spec.compute, True, width, taps, depth // 2)
    for taps in (3, 1) if columns.three_neighbours() else (1,):
        yield Family("direct", False, 4 if outputs <= 4 else 8, taps, 4)


def _fits(
    family: Family, tile: Tile, rows: Axis, columns: Axis, sources: Sequence[ImageArgs]
) -> bool:
    """Whether a block holds it, within what csrc/conv_stage.cuh counts in 32 bits."""
    down, across = tile.blocks(rows, columns)
    return (
        family.shared_bytes(tile, rows, columns) <= family.pool_bytes
        and tile.pixels * tile.window[1] < 2**20
        and all(_reach(source, tile.window) < 2**31 for source in sources)
        and across <= MAX_GRID[1]
        and down <= MAX_GRID[2]
    )


def _reach(image: ImageArgs, window: tuple[int, int]) -> int:
    """The distance of the elements of a window that lie farthest apart."""
    return int(abs(image.row_stride) * window[0] + abs(image.pixel_stride) * window[1])


def _time(family: Family, tile: Tile, outputs: int, rows: Axis, columns: Axis) -> float:
    """What a chunk of channels takes; ``outputs`` are those of all groups."""
    blocks = prod(tile.blocks(rows, columns)) * family.channel_blocks(outputs, tile)
    weights = tile.parts * family.channels * rows.taps * columns.taps
    staged = 32 * (tile.pixels + weights)
    products = tile.rows * tile.columns * weights
    return max(blocks, ENOUGH_BLOCKS) * (staged + products / PRODUCTS_PER_BYTE[family.tensor_cores])
