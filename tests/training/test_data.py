"""Folder layouts, crops and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeadapt.blur import average_frames
from edgeadapt.errors import DataError
from edgeadapt.testing import photo
from edgeadapt.training.config import DataConfig, SourceConfig
from edgeadapt.training.data import Batches, open_batches, to_frame, to_tensor, validation_pairs
from edgeadapt.training.images import ImageCache
from edgeadapt.training.layouts import open_source
from edgeadapt.training.sources import PairSource, SharpSource, Source, VideoSource
from support.photos import write_pictures


def opened(kind: str, root: Path, path: str = ".", blur: str = "blur") -> Source:
    return open_source(SourceConfig(kind, path, blur=blur), root, ImageCache(10))


def index_pairs(root: Path, count: int = 2) -> PairSource:
    """Pairs whose red and green tell the row and column, and whose blue tells which image it is."""
    for side, blue in (("blur", 10), ("sharp", 200)):
        (root / side).mkdir(parents=True)
        for index in range(count):
            rows, columns = np.mgrid[:40, :50]
            frame = np.stack([rows, columns, np.full((40, 50), blue + index)], -1).astype(np.uint8)
            Image.fromarray(frame).save(root / side / f"{index}.png")
    source = opened("pairs", root)
    assert isinstance(source, PairSource)
    return source


@pytest.mark.parametrize("blur", ["blur", "blur_gamma"])
def test_the_gopro_layout_is_read(tmp_path: Path, blur: str) -> None:
    for sequence, count in (("GOPR1", 2), ("GOPR2", 3)):
        write_pictures(tmp_path / sequence / blur, count, 8, 9, seed=1)
        write_pictures(tmp_path / sequence / "sharp", count, 8, 9, seed=2)
    source = opened("gopro", tmp_path, blur=blur)
    assert len(source) == 5
    pair = source.fixed(4, 100)
    np.testing.assert_array_equal(pair.blurred, photo(1002, 8, 9))
    np.testing.assert_array_equal(pair.sharp, photo(2002, 8, 9))


def test_the_reds_layout_is_read(tmp_path: Path) -> None:
    for split, sequence, seed in (("train", "000", 1), ("train", "001", 3), ("val", "000", 5)):
        write_pictures(tmp_path / f"{split}_blur" / sequence, 2, 8, 9, seed=seed)
        write_pictures(tmp_path / f"{split}_sharp" / sequence, 2, 8, 9, seed=seed + 1)
    source = opened("reds", tmp_path)
    assert len(source) == 6
    pair = source.fixed(5, 100)
    np.testing.assert_array_equal(pair.blurred, photo(5001, 8, 9))
    np.testing.assert_array_equal(pair.sharp, photo(6001, 8, 9))


def test_a_hidden_file_is_no_image_and_a_ppm_is_one(tmp_path: Path) -> None:
    for side, seed in (("blur", 1), ("sharp", 2)):
        write_pictures(tmp_path / side, 2, 8, 9, seed=seed)
        Image.fromarray(photo(seed, 8, 9)).save(tmp_path / side / "last.ppm")
    (tmp_path / "blur" / "._000.png").write_bytes(b"what macOS leaves beside a photo")
    source = opened("pairs", tmp_path)
    assert len(source) == 3
    np.testing.assert_array_equal(source.fixed(2, 100).sharp, photo(2, 8, 9))


def test_video_averages_frames_about_the_sharp_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "clip", 14, 10, 12)
    source = opened("video", tmp_path)
    assert isinstance(source, VideoSource)
    assert len(source) == 2  # frames 6 and 7 have six neighbours on each side
    pair = source.fixed(1, 100)
    np.testing.assert_array_equal(pair.sharp, photo(7, 10, 12))
    expected = average_frames([photo(i, 10, 12) for i in range(2, 13)])
    np.testing.assert_array_equal(pair.blurred, expected)


def test_sharp_photos_are_blurred_on_the_way(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 2, 50, 60)
    source = opened("sharp", tmp_path)
    assert isinstance(source, SharpSource)
    crops = [source.crop(np.random.default_rng(seed), 32) for seed in range(8)]
    assert all(pair.blurred.shape == pair.sharp.shape == (32, 32, 3) for pair in crops)
    assert all((pair.blurred != pair.sharp).any() for pair in crops)
    again = source.fixed(1, 40)
    np.testing.assert_array_equal(again.blurred, source.fixed(1, 40).blurred)


def test_crops_are_aligned_and_reach_every_place(tmp_path: Path) -> None:
    source = index_pairs(tmp_path)
    corners = set()
    for seed in range(400):
        pair = source.crop(np.random.default_rng(seed), 36)
        np.testing.assert_array_equal(pair.blurred[..., :2], pair.sharp[..., :2])
        assert pair.sharp[0, 0, 2] - pair.blurred[0, 0, 2] == 190
        corners.add((int(pair.sharp[0, 0, 0]), int(pair.sharp[0, 0, 1])))
    assert {top for top, _ in corners} == set(range(5))
    assert {left for _, left in corners} == set(range(15))


def test_flips_keep_pairs_aligned_and_all_four_occur(tmp_path: Path) -> None:
    batches = Batches((index_pairs(tmp_path),), (1.0,), seed=0, crop=16, size=1)
    seen = set()
    for iteration in range(40):
        pair = batches.pair(iteration, 0)
        np.testing.assert_array_equal(pair.blurred[..., :2], pair.sharp[..., :2])
        corner, end = pair.sharp[0, 0, :2].astype(int), pair.sharp[-1, -1, :2].astype(int)
        seen.add((corner[0] < end[0], corner[1] < end[1]))
    assert len(seen) == 4


def test_a_batch_depends_on_seed_and_iteration_only(tmp_path: Path) -> None:
    source = index_pairs(tmp_path)

    def batch(seed: int, iteration: int) -> torch.Tensor:
        return Batches((source,), (1.0,), seed, 16, 4).batch(iteration)[0]

    torch.testing.assert_close(batch(1, 5), batch(1, 5), rtol=0, atol=0)
    assert not torch.equal(batch(1, 5), batch(1, 6))
    assert not torch.equal(batch(1, 5), batch(2, 5))
    assert batch(1, 5).shape == (4, 3, 16, 16)


def test_processes_share_a_batch_without_overlap(tmp_path: Path) -> None:
    source = index_pairs(tmp_path)
    whole = Batches((source,), (1.0,), 3, 16, 4).batch(9)
    parts = [Batches((source,), (1.0,), 3, 16, 4, rank, 2).batch(9) for rank in range(2)]
    for k in range(2):
        together = torch.stack([parts[0][k], parts[1][k]], 1).flatten(0, 1)
        torch.testing.assert_close(together, whole[k], rtol=0, atol=0)


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_pictures(tmp_path / name / "blur", 1, 8, 8, seed)
        write_pictures(tmp_path / name / "sharp", 1, 8, 8, seed)
    sources = tuple(SourceConfig("pairs", name, weight) for name, weight in (("a", 3.0), ("b", 1)))
    config = DataConfig(sources, crop=8)
    batches = open_batches(config, tmp_path, ImageCache(10), 400)
    first = to_tensor([photo(0, 8, 8)])[0].sum()
    share = np.mean([abs(float(image.sum() - first)) < 1e-2 for image in batches.batch(0)[0]])
    # 400 draws at 3:1 have a standard deviation of 0.022
    assert abs(share - 0.75) < 0.1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_made_ahead_are_the_same_in_order(tmp_path: Path, workers: int) -> None:
    batches = Batches((index_pairs(tmp_path),), (1.0,), seed=0, crop=16, size=2)
    seen = list(batches.ahead(3, 6, workers))
    assert [iteration for iteration, _, _ in seen] == [3, 4, 5]
    for iteration, blurred, sharp in seen:
        expected = batches.batch(iteration)
        assert torch.equal(blurred, expected[0])
        assert torch.equal(sharp, expected[1])
    assert list(batches.ahead(6, 6, workers)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, workers: int) -> None:
    batches = Batches((index_pairs(tmp_path),), (1.0,), seed=0, crop=16, size=2)
    file = next((tmp_path / "sharp").iterdir())
    for broken in file.parent.iterdir():
        broken.write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image that can be read"):
        list(batches.ahead(0, 2, workers))


def test_validation_pairs_are_spread_and_cut_to_the_multiple(tmp_path: Path) -> None:
    write_pictures(tmp_path / "blur", 6, 21, 30)
    write_pictures(tmp_path / "sharp", 6, 21, 30)
    entry = SourceConfig("pairs", ".", count=3)
    config = DataConfig((entry,), (entry,), validation_size=26)
    pairs = validation_pairs(config, tmp_path, ImageCache(10), 8)
    assert [pair.sharp.shape for pair in pairs] == [(16, 24, 3)] * 3
    for pair, index in zip(pairs, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(pair.sharp, photo(index, 21, 30)[:16, 2:26])


def test_frames_and_tensors_convert_both_ways() -> None:
    frame = photo(0, 5, 7)
    tensor = to_tensor([frame])
    assert tensor.shape == (1, 3, 5, 7)
    assert tensor.dtype == torch.float32
    assert float(to_tensor([np.zeros((1, 1, 3), np.uint8)]).max()) == -1.0
    assert float(to_tensor([np.full((1, 1, 3), 255, np.uint8)]).min()) == 1.0
    np.testing.assert_array_equal(to_frame(tensor[0]), frame)
    assert to_frame(torch.full((3, 1, 1), 1.7)).max() == 255


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 3, 512, 512)  # 0.75 MiB each
    cache = ImageCache(megabytes=2)
    files = sorted((tmp_path / "a").iterdir())
    first = cache.read(files[0])
    second = cache.read(files[1])
    assert cache.read(files[0]) is first
    cache.read(files[2])
    assert cache.read(files[0]) is first
    assert cache.read(files[1]) is not second
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder.*--data"):
        opened("gopro", tmp_path, "nowhere")
    for kind in ("gopro", "reds", "pairs", "sharp", "video"):
        with pytest.raises(DataError, match=rf"nothing found for kind = '{kind}'.*expected"):
            opened(kind, tmp_path)


def test_pairs_that_do_not_match_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a" / "blur", 3, 8, 8)
    with pytest.raises(DataError, match=r"sharp: no such folder, but .*blur is there"):
        opened("pairs", tmp_path, "a")
    write_pictures(tmp_path / "a" / "sharp", 2, 8, 8)
    with pytest.raises(DataError, match="blur: 1 images have no partner, the first is '002'"):
        opened("pairs", tmp_path, "a")
    (tmp_path / "a" / "blur" / "002.png").unlink()
    Image.fromarray(photo(0, 8, 9)).save(tmp_path / "a" / "blur" / "001.png")
    with pytest.raises(DataError, match=r"001.png: is 9x8, its sharp image .* is 8x8"):
        opened("pairs", tmp_path, "a").fixed(1, 8)
    with pytest.raises(DataError, match="a crop of 9 pixels does not fit in 8x8"):
        opened("pairs", tmp_path, "a").crop(np.random.default_rng(1), 9)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(DataError, match=r"a.png: not an image that can be read"):
        opened("sharp", tmp_path).fixed(0, 8)
