"""Image files, and the float arrays that the graphs of a bundle take.

A frame is uint8 (H, W, 3) RGB; a network image is float32 (1, 3, H', W') RGB in [-1, 1], where H'
and W' are H and W rounded up to the bundle's size multiple.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeadapt.errors import ArrayError, ImageError, one_line
from edgeadapt.files import atomic_file

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

# Suffix -> how Pillow encodes it. JPEG is the only one that loses anything: 95 without chroma
# subsampling is the highest quality that Pillow's documentation recommends.
_ENCODERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
    ".tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    ".tiff": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    ".bmp": {"format": "BMP"},
    ".ppm": {"format": "PPM"},
}
SUFFIXES = frozenset(_ENCODERS)

# One float for each of the 256 levels, rounded once from float64, so that black and white are
# exactly -1 and 1.
_LEVELS = (np.arange(256) / 127.5 - 1.0).astype(np.float32)


def read_image(path: Path | str) -> U8:
    """Decode the first image of a file to uint8 (H, W, 3) RGB, upright.

    Grayscale, palette, CMYK and 16-bit files are converted and the EXIF orientation is applied. An
    alpha channel is dropped and the colours below it are kept: laying them over a background would
    draw an edge that the camera never saw. Pillow's own limit against decompression bombs holds:
    twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 megapixels.

    Raises:
        ImageError: if the file is missing, empty, damaged, no image, too large, or holds 32-bit
            samples.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty.", "copy or export it again.")
        return _decode(path)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file.", "check the path.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: not an image in a format that can be read.",
            "give a PNG, JPEG, WebP, TIFF or BMP file.",
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: {one_line(error)}", "cut the image into parts before restoring it."
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise a dozen types on damaged data: OSError, SyntaxError, struct.error,
        # IndexError, ...
        raise ImageError(
            f"{path}: cannot be read as an image ({one_line(error)}).",
            "the file may be damaged or cut short: copy or export it again.",
        ) from error


def write_image(path: Path | str, image: U8) -> None:
    """Encode uint8 (H, W, 3) RGB as the suffix says; the file appears whole or not at all.

    PNG, WebP, TIFF, BMP and PPM keep every bit; JPEG is written with quality 95.

    Raises:
        ArrayError: if ``image`` is not such an array.
        ImageError: if the suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    check_frame("write_image", image)
    check_suffix(path)
    options = _ENCODERS[path.suffix.lower()]
    try:
        with atomic_file(path) as temporary:
            Image.fromarray(np.ascontiguousarray(image)).save(temporary, **options)
    except (OSError, ValueError) as error:  # ValueError: too large for the format
        raise ImageError(
            f"{path}: cannot be written ({one_line(error)}).",
            "choose a folder you may write to, with free space, or another format.",
        ) from error


def check_suffix(path: Path) -> None:
    """Raise an `ImageError` unless `write_image` knows the suffix of ``path``."""
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(
            f"{path}: no image format has the suffix {path.suffix!r}.",
            f"use one of {', '.join(sorted(SUFFIXES))}.",
        )


def check_frame(operation: str, image: object) -> None:
    """Raise an `ArrayError` unless ``image`` is uint8 (H, W, 3) with at least one pixel."""
    if not isinstance(image, np.ndarray):
        raise ArrayError(
            f"{operation}: image must be a numpy array, got {type(image).__name__}.",
            "edgeadapt.image.read_image gives one.",
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ArrayError(
            f"{operation}: image must be uint8 (H, W, 3) RGB, got {image.dtype} {image.shape}.",
            "scale to 0..255, put the channels last and drop an alpha channel.",
        )


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """``height`` and ``width`` rounded up to the next multiple."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def to_network(image: U8, multiple: int, out: F32 | None = None) -> F32:
    """Turn uint8 (H, W, 3) into float32 (1, 3, H', W') in [-1, 1], padded by reflection.

    The padding is below and to the right. The edge itself is not repeated; a side shorter than the
    padding is reflected back and forth, a single row or column is repeated. ``out``, if given, is
    written in full and returned.
    """
    height, width = image.shape[:2]
    shape = (1, 3, *padded_size(height, width, multiple))
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ArrayError(
            f"to_network: out must be float32 {shape}, got {out.dtype} {out.shape}.",
        )
    for channel in range(3):
        plane = out[0, channel]
        plane[:height, :width] = _LEVELS[image[:, :, channel]]
        plane[:height, width:] = plane[:height, _reflected(width, shape[3])]
        plane[height:] = plane[_reflected(height, shape[2])]
    return out


def from_network(array: F32, height: int, width: int) -> U8:
    """Cut float32 (1, 3, H', W') in [-1, 1] to uint8 (``height``, ``width``, 3).

    Values are clamped and rounded half to even.

    Raises:
        ArrayError: if a value is not a number.
    """
    levels = (array[0, :, :height, :width] + np.float32(1.0)) * np.float32(127.5)
    np.clip(np.rint(levels, out=levels), 0.0, 255.0, out=levels)
    if np.isnan(levels).any():
        raise ArrayError(
            f"from_network: {int(np.isnan(levels).sum())} of {levels.size} values are not numbers.",
            "the weights or the network are broken: Session.reset() goes back to the bundle's.",
        )
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def _reflected(size: int, padded: int) -> npt.NDArray[np.intp]:
    """Source index of each padded index: for size 3, 0 1 2 | 1 0 1 2 ..., after the bar."""
    period = max(2 * (size - 1), 1)
    index = np.arange(size, padded) % period
    return np.minimum(index, period - index) if size > 1 else index


def _decode(path: Path) -> U8:
    # Pillow warns about odd metadata and, when it opens a file, from half its size limit on;
    # neither matters to the pixels.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(_to_rgb(path, upright, image.format or ""))


def _to_rgb(path: Path, image: Image.Image, file_format: str) -> U8:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        gray = np.asarray(image).astype(np.uint32)  # Pillow's own conversion would clip at 255
        return np.repeat(((gray * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{path}: has 32-bit samples (mode {image.mode}), whose range is unknown.",
            "convert it to 8 or 16 bits.",
        )
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")  # undoes premultiplied alpha, resolves transparent entries
    return np.asarray(image.convert("RGB"))
