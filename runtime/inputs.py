"""From the paths of a command line to a list of what to read and what to write."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.errors import ImageError
from edgeadapt.files import may_write
from edgeadapt.image import SUFFIXES, check_suffix
from edgeadapt.layouts import list_images


@dataclass(frozen=True)
class Job:
    """One image to restore."""

    source: Path
    target: Path
    reference: Path | None = None

    def step_target(self, step: int) -> Path:
        """Where the image of one step goes: `photo.png` -> `photo.step3.png`."""
        return self.target.with_name(f"{self.target.stem}.step{step}{self.target.suffix}")


def plan(
    inputs: Sequence[str], out: str, reference: str | None = None, kept_steps: int = 0
) -> list[Job]:
    """What to read and what to write.

    ``out`` is a file if it has a suffix, is no folder yet and ends in no slash, which takes one
    input and an image's suffix; else it is a folder, where each input becomes `NAME.png`.
    ``kept_steps`` is the number of images that are written beside each result.

    Raises:
        ImageError: if an input or reference is missing, two results would have one name, a result
            would overwrite something that is read, or the output cannot be written.
    """
    sources = expand(inputs)
    jobs = [
        Job(source, target, _reference(source, reference, len(sources)))
        for source, target in zip(sources, _targets(sources, out), strict=True)
    ]
    written: dict[Path, Path] = {}
    read = {path.resolve() for job in jobs for path in (job.source, job.reference) if path}
    for job in jobs:
        for target in [job.target, *(job.step_target(step) for step in range(kept_steps))]:
            _claim(target, job.source, written, read)
    for folder in {job.target.parent for job in jobs}:
        check_writable(folder)
    return jobs


def expand(inputs: Sequence[str]) -> list[Path]:
    """Files as they are, folders as their images, patterns as their matches; each file once.

    Raises:
        ImageError: if something does not exist, matches nothing, or is a folder without images.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        for path in _expand_one(text):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand_one(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        files = list_images(path)
        if not files:
            raise ImageError(f"{path}: no images in this folder.", f"it looks for {_suffixes()}.")
        return files
    if path.exists() or not glob.has_magic(text):
        if not path.exists():
            raise ImageError(f"{path}: there is no such file or folder.", "check the path.")
        return [path]
    matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207
    files = [file for file in matches if file.is_file()]
    if not files:
        raise ImageError(f"{text}: matches no file.", "check the pattern.")
    return files


def _targets(sources: Sequence[Path], out: str) -> list[Path]:
    path = Path(out)
    if path.suffix and not path.is_dir() and not out.endswith(("/", os.sep)):
        _check_file(path, len(sources))
        return [path]
    # PNG whatever came in: a restored image should not be put through JPEG again.
    return [path / f"{source.stem}.png" for source in sources]


def _check_file(path: Path, count: int) -> None:
    """Refuse a file's name that cannot take ``count`` images: as a folder it would surprise."""
    hint = f"end the name of a folder with a slash: {path}/"
    if count > 1:
        raise ImageError(f"{path}: is a file's name, for {count} images.", hint)
    try:
        check_suffix(path)
    except ImageError as error:
        raise ImageError(error.message, f"{error.hint.rstrip('.')}, or {hint}") from None


def _reference(source: Path, reference: str | None, count: int) -> Path | None:
    if reference is None:
        return None
    path = Path(reference)
    if path.is_file() and count == 1:
        return path
    if not path.is_dir():
        expected = "a file or a folder" if count == 1 else f"a folder, for {count} images"
        raise ImageError(f"{path}: --reference must be {expected}.", "check the path.")
    same = [file for file in list_images(path) if file.stem == source.stem]
    if len(same) != 1:
        raise ImageError(
            f"{path}: {len(same)} images are called {source.stem!r}, expected one.",
            "a reference has the name of its image.",
        )
    return same[0]


def _claim(target: Path, source: Path, written: dict[Path, Path], read: set[Path]) -> None:
    key = target.resolve()
    if key in read:
        raise ImageError(
            f"{target}: would overwrite an image that is read.", "choose another output folder."
        )
    if key in written:
        raise ImageError(
            f"{target}: is the output of both {written[key]} and {source}.",
            "rename one, or run them into different folders.",
        )
    if target.is_dir():
        raise ImageError(f"{target}: is a folder.", "choose another output.")
    written[key] = source


def check_writable(folder: Path) -> None:
    """Refuse now what would fail after minutes of work; nothing is made yet."""
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    if not existing.is_dir():
        raise ImageError(f"{folder}: {existing} is not a folder.", "choose another output.")
    if not may_write(existing):
        raise ImageError(
            f"{folder}: no permission to write in {existing}.", "choose another output."
        )


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))
