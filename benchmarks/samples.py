"""The pairs of images that quality is measured on: found in a folder, decoded one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgeadapt.blur import Pair, synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.errors import DataError
from edgeadapt.image import read_image
from edgeadapt.layouts import LAYOUTS, PairFiles, image_groups, read_gopro, read_pairs, read_reds
from edgeadapt.shifts import seed_of, shift_pair

AUTO = "auto"


@dataclass(frozen=True)
class Sample:
    """One image of a data set; ``blurred`` None: a photo that is blurred here."""

    recording: str
    name: str  # of the sharp file
    sharp: Path
    blurred: Path | None
    size: tuple[int, int] | None = None  # only the middle, at most this high and wide

    def load(self, shift: str) -> Pair:
        """Both images, uint8 (H, W, 3), or the middle of them, under ``shift``.

        A photo is blurred as a whole, by the synthetic blur of training, drawn from its recording
        and name.

        Raises:
            ImageError: if a file cannot be read.
            DataError: if the two differ in size.
        """
        label = f"{self.recording}/{self.name}"
        sharp = read_image(self.sharp)
        if self.blurred is None:
            pair = synthesize_blur(sharp, draw_parameters(seed_of(label)))
        else:
            pair = Pair(read_image(self.blurred), sharp)
        if pair.blurred.shape != pair.sharp.shape:
            raise DataError(
                f"{self.blurred}: is {_size(pair.blurred.shape)}, its sharp image {self.sharp} is "
                f"{_size(pair.sharp.shape)}.",
                "both images of a pair must have the same size; remove or replace this pair.",
            )
        return shift_pair(shift, pair if self.size is None else _middle(pair, self.size), label)

    def digest(self) -> str:
        """16 hexadecimal digits of the files' bytes: another picture of the same name differs."""
        digest = hashlib.sha256()
        for file in (self.blurred, self.sharp):
            digest.update(b"" if file is None else file.read_bytes())
            digest.update(b"|")
        if self.size is not None:
            digest.update(repr(self.size).encode())
        return digest.hexdigest()[:16]


def find_samples(
    folder: Path,
    layout: str = AUTO,
    blur: str = "",
    sharp: str = "sharp",
    limit: int | None = None,
    size: tuple[int, int] | None = None,
) -> list[Sample]:
    """The images of ``folder`` in one of `edgeadapt.layouts.LAYOUTS`; ``auto`` takes what fits.

    Args:
        folder: of the data set.
        layout: a key of `LAYOUTS`, or "auto".
        blur: name of the folders of blurred images; "" takes blur, else blur_gamma.
        sharp: name of the folders of sharp images.
        limit: most images of one recording, spread evenly over it.
        size: only the middle of each, at most this high and wide; None: whole images.

    Raises:
        DataError: if the folder does not exist or holds none of it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.", "give the folder of your data with --data.")
    for name in _READERS if layout == AUTO else [layout]:
        samples = _READERS[name](folder, blur, sharp)
        if samples:
            return [replace(sample, size=size) for sample in _thinned(samples, limit)]
    expected = "; or ".join(LAYOUTS.values()) if layout == AUTO else LAYOUTS[layout]
    raise DataError(f"{folder}: no images found for layout {layout!r}.", f"expected {expected}.")


def _gopro(folder: Path, blur: str, sharp: str) -> list[Sample]:
    return _of_pairs(read_gopro, folder, blur, sharp)


def _pairs(folder: Path, blur: str, sharp: str) -> list[Sample]:
    return _of_pairs(read_pairs, folder, blur, sharp)


def _of_pairs(
    reader: Callable[[Path, str, str], list[PairFiles]], folder: Path, blur: str, sharp: str
) -> list[Sample]:
    for name in [blur] if blur else ["blur", "blur_gamma"]:
        found = reader(folder, name, sharp)
        if found:
            return [_sample(files) for files in found]
    return []


def _sample(files: PairFiles) -> Sample:
    return Sample(files.recording, files.sharp.name, files.sharp, files.blurred)


def _reds(folder: Path, blur: str, sharp: str) -> list[Sample]:
    return [_sample(files) for files in read_reds(folder)]


def _photos(folder: Path, blur: str, sharp: str) -> list[Sample]:
    return [
        Sample(group[0].resolve().parent.name, file.name, file, None)
        for group in image_groups(folder)
        for file in group
    ]


def _thinned(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most ``limit`` images of each recording: the middles of as many equal parts."""
    if limit is None:
        return samples
    recordings: dict[str, list[Sample]] = {}
    for sample in samples:
        recordings.setdefault(sample.recording, []).append(sample)
    kept = []
    for group in recordings.values():
        count = min(limit, len(group))
        kept += [group[(2 * part + 1) * len(group) // (2 * count)] for part in range(count)]
    return kept


def _middle(pair: Pair, size: tuple[int, int]) -> Pair:
    places = []
    for have, want in zip(pair.sharp.shape[:2], size, strict=True):
        start = max(0, have - want) // 2
        places.append(slice(start, start + min(have, want)))
    rows, cells = places
    return Pair(pair.blurred[rows, cells].copy(), pair.sharp[rows, cells].copy())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


# In the order in which `auto` tries them: flat pairs are GoPro's layout with one sequence, and
# every folder of pairs holds folders of images too.
_READERS: dict[str, Callable[[Path, str, str], list[Sample]]] = {
    "gopro": _gopro,
    "reds": _reds,
    "pairs": _pairs,
    "sharp": _photos,
}
