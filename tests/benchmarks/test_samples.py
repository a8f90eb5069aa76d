from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeadapt.benchmarks.samples import Sample, find_samples
from edgeadapt.blur import synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.errors import DataError
from edgeadapt.image import read_image
from edgeadapt.shifts import seed_of
from support.photos import write_pictures


def labels(samples: list[Sample]) -> list[str]:
    return [f"{sample.recording}/{sample.name}" for sample in samples]


def write_pairs(folder: Path, count: int, blur: str = "blur", sharp: str = "sharp") -> None:
    write_pictures(folder / blur, count, 20, 24, seed=1)
    write_pictures(folder / sharp, count, 20, 24, seed=2)


def test_gopro(tmp_path: Path) -> None:
    write_pairs(tmp_path / "GOPR1", 2)
    write_pairs(tmp_path / "GOPR2", 1)
    write_pictures(tmp_path / "GOPR1" / "blur_gamma", 2, 20, 24, seed=3)
    samples = find_samples(tmp_path)
    assert labels(samples) == ["GOPR1/000.png", "GOPR1/001.png", "GOPR2/000.png"]
    pair = samples[1].load("none")
    assert np.array_equal(pair.blurred, read_image(tmp_path / "GOPR1" / "blur" / "001.png"))
    assert np.array_equal(pair.sharp, read_image(tmp_path / "GOPR1" / "sharp" / "001.png"))
    gamma = find_samples(tmp_path, blur="blur_gamma")
    assert labels(gamma) == ["GOPR1/000.png", "GOPR1/001.png"]
    assert gamma[0].blurred == tmp_path / "GOPR1" / "blur_gamma" / "000.png"


def test_gopro_with_blur_gamma_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path / "GOPR1", 2, blur="blur_gamma")
    assert labels(find_samples(tmp_path)) == ["GOPR1/000.png", "GOPR1/001.png"]


def test_reds(tmp_path: Path) -> None:
    for sequence in ("000", "007"):
        write_pictures(tmp_path / "val_blur" / sequence, 2, 20, 24, seed=1)
        write_pictures(tmp_path / "val_sharp" / sequence, 2, 20, 24, seed=2)
    samples = find_samples(tmp_path)
    assert labels(samples) == [f"val_{s}/{n}.png" for s in ("000", "007") for n in ("000", "001")]
    assert samples[2].blurred == tmp_path / "val_blur" / "007" / "000.png"
    assert samples[2].sharp == tmp_path / "val_sharp" / "007" / "000.png"


def test_flat_pairs_are_one_recording(tmp_path: Path) -> None:
    write_pairs(tmp_path / "HIDE", 3)
    write_pairs(tmp_path / "other", 2, "input", "GT")
    names = ["HIDE/000.png", "HIDE/001.png", "HIDE/002.png"]
    assert labels(find_samples(tmp_path / "HIDE")) == names
    assert labels(find_samples(tmp_path / "HIDE", "pairs")) == names
    assert len(find_samples(tmp_path / "other", blur="input", sharp="GT")) == 2


def test_photos_are_blurred_by_their_names(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 1, 20, 24)
    write_pictures(tmp_path / "photos" / "more", 1, 20, 24, seed=4)
    samples = find_samples(tmp_path / "photos")
    assert labels(samples) == ["photos/000.png", "more/000.png"]
    for sample in samples:
        sharp = read_image(sample.sharp)
        seed = seed_of(f"{sample.recording}/{sample.name}")
        expected = synthesize_blur(sharp, draw_parameters(seed))
        assert np.array_equal(sample.load("none").blurred, expected.blurred)
        assert not np.array_equal(expected.blurred, sharp)


def test_a_limit_is_spread_over_each_recording(tmp_path: Path) -> None:
    write_pairs(tmp_path / "A", 9)
    write_pairs(tmp_path / "B", 2)
    samples = find_samples(tmp_path, limit=3)
    assert labels(samples) == ["A/001.png", "A/004.png", "A/007.png", "B/000.png", "B/001.png"]


def test_a_digest_tells_pictures_apart(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", 2)
    write_pairs(tmp_path / "b", 2)
    first, second = find_samples(tmp_path / "a")
    assert first.digest() == find_samples(tmp_path / "b")[0].digest()
    assert first.digest() != second.digest()
    before = first.digest()
    assert first.blurred is not None
    first.blurred.write_bytes(second.sharp.read_bytes())
    assert first.digest() != before


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_samples(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found for layout 'auto'"):
        find_samples(tmp_path / "empty")
    write_pictures(tmp_path / "photos", 1, 20, 24)
    with pytest.raises(DataError, match="layout 'reds'") as error:
        find_samples(tmp_path / "photos", "reds")
    assert "val_blur" in error.value.hint
    write_pictures(tmp_path / "odd" / "blur", 1, 20, 24)
    write_pictures(tmp_path / "odd" / "sharp", 1, 20, 25)
    with pytest.raises(DataError, match=r"is 24x20, its sharp image .* is 25x20"):
        find_samples(tmp_path / "odd")[0].load("none")
