"""Batches as a pure function of (seed, iteration): a resumed run needs no sampler state."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgeadapt.blur import Pair
from edgeadapt.errors import DataError
from edgeadapt.training.config import DataConfig
from edgeadapt.training.images import ImageCache
from edgeadapt.training.layouts import open_source
from edgeadapt.training.sources import Source


@dataclass(frozen=True)
class Batches:
    """Draws crops from several sources by weight, with random flips (paper, section 4.2)."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    seed: int
    crop: int
    size: int  # pairs in the whole batch, over all processes
    rank: int = 0
    world_size: int = 1

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Blurred and sharp images of this process, (size / world_size, 3, crop, crop) each."""
        pairs = [self.pair(iteration, i) for i in range(self.rank, self.size, self.world_size)]
        return to_tensor([p.blurred for p in pairs]), to_tensor([p.sharp for p in pairs])

    def pair(self, iteration: int, index: int) -> Pair:
        """Pair ``index`` of the whole batch; does not depend on which process asks."""
        rng = np.random.default_rng((self.seed, iteration, index))
        shares = np.array(self.weights) / sum(self.weights)
        source = self.sources[int(rng.choice(len(self.sources), p=shares))]
        pair = source.crop(rng, self.crop)
        vertical, horizontal = (int(step) for step in rng.choice((-1, 1), 2))
        flip = (slice(None, None, vertical), slice(None, None, horizontal))
        return Pair(pair.blurred[flip], pair.sharp[flip])

    def ahead(
        self, start: int, stop: int, workers: int = 0
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (iteration, blurred, sharp), made while those before are used.

        By ``workers`` processes, each with images of its own in memory; 0: by a thread.

        Raises:
            DataError: if an image cannot be read, or is too small.
        """
        if workers:
            yield from self._by_processes(start, stop, workers)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting = pool.submit(self.batch, start)
            for iteration in range(start, stop):
                blurred, sharp = waiting.result()
                if iteration + 1 < stop:
                    waiting = pool.submit(self.batch, iteration + 1)
                yield iteration, blurred, sharp

    def _by_processes(
        self, start: int, stop: int, workers: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        loader = DataLoader(
            _Iterations(self, start, stop),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn",  # a fork would take along what CUDA has open
        )
        for iteration, made in zip(range(start, stop), loader, strict=True):
            if isinstance(made, DataError):
                raise made
            yield iteration, *made


class _Iterations(Dataset["tuple[Tensor, Tensor] | DataError"]):
    """Batch ``start + i`` as element i; an error as a value, which keeps its own words."""

    def __init__(self, batches: Batches, start: int, stop: int) -> None:
        self._batches, self._start, self._stop = batches, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            return self._batches.batch(self._start + index)
        except DataError as error:
            return error


def open_batches(
    config: DataConfig, root: Path, cache: ImageCache, size: int, rank: int = 0, world_size: int = 1
) -> Batches:
    """The batches of ``[[data.train]]`` below ``root``.

    Raises:
        DataError: if a folder is not laid out as its entry says.
    """
    sources = tuple(open_source(entry, root, cache) for entry in config.train)
    weights = tuple(entry.weight for entry in config.train)
    return Batches(sources, weights, config.seed, config.crop, size, rank, world_size)


def validation_pairs(
    config: DataConfig, root: Path, cache: ImageCache, multiple: int
) -> list[Pair]:
    """The pairs of ``[[data.validation]]``, always the same, cut to multiples of ``multiple``."""
    pairs = []
    for entry in config.validation:
        source = open_source(entry, root, cache)
        count = min(entry.count or len(source), len(source))
        for position in range(count):
            pair = source.fixed(position * len(source) // count, config.validation_size)
            height, width = (length // multiple * multiple for length in pair.sharp.shape[:2])
            pairs.append(Pair(pair.blurred[:height, :width], pair.sharp[:height, :width]))
    return pairs


def to_tensor(frames: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) frames -> (N, 3, H, W) float32 in [-1, 1]."""
    stacked = np.stack(frames).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32) / np.float32(127.5) - np.float32(1))


def to_frame(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> uint8 (H, W, 3), clamped and rounded."""
    scaled = ((image.detach().float() + 1) * 127.5).clamp(0, 255).round()
    return scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
