"""Distribution shifts: a pair of images as a camera, or a scene, that training has not seen gives.

Each takes a pair of a blurred and a sharp image and gives another. What is random in it comes from
a seed, so that the same image is shifted the same way in every run. Light is taken as the 2.2nd
power of a level; `edgeadapt.blur` does so too.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeadapt.blur import Frame, Pair, synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.errors import ArrayError, ConfigError

Kernel = npt.NDArray[np.float64]

STRONGER = 2.0  # times the motion of the synthetic blur in training: up to 48 px, 4 degrees
DEFOCUS_PX = 4.0  # radius of the disc that a point of light becomes
SHAKE_PX = (12.0, 24.0)  # longer side of the path of a shaken camera, drawn evenly
# In linear light, white = 1: five times and twelve times the most that training draws; about 8
# grey levels in the middle greys.
SHOT_NOISE = 4e-3  # variance at full light, falling with it
READ_NOISE = 1e-2  # standard deviation in the dark
JPEG_QUALITY = 30
GAMMA = 2.2


@dataclass(frozen=True)
class Shift:
    """One shift: what it does, for the table, and how."""

    text: str
    apply: Callable[[Pair, int], Pair]  # (pair, seed) -> pair


def shift_pair(name: str, pair: Pair, image_name: str) -> Pair:
    """The pair under the shift called ``name``; ``image_name`` seeds what is random in it.

    Raises:
        ConfigError: if there is no such shift.
        ArrayError: if the images differ in size or are smaller than 2x2.
    """
    if name not in SHIFTS:
        raise ConfigError(f"there is no shift {name!r}.", f"use one of {', '.join(SHIFTS)}.")
    if pair.blurred.shape != pair.sharp.shape or min(pair.sharp.shape[:2]) < 2:
        raise ArrayError(
            "shift_pair: both images must have one size, at least 2x2, "
            f"got {pair.blurred.shape} and {pair.sharp.shape}."
        )
    return SHIFTS[name].apply(pair, seed_of(f"{name}/{image_name}"))


def seed_of(text: str) -> int:
    """A seed that depends on ``text`` only, on every machine: its CRC-32."""
    return zlib.crc32(text.encode("utf-8", "surrogateescape"))


def unchanged(pair: Pair, seed: int) -> Pair:
    """The pair as it is."""
    return pair


def stronger_blur(pair: Pair, seed: int) -> Pair:
    """The sharp image blurred by `synthesize_blur` with `STRONGER` times the motion of training.

    The target is the middle of that exposure: objects that move in it are in the target too.
    """
    return synthesize_blur(pair.sharp, draw_parameters(seed, STRONGER))


def defocus(pair: Pair, seed: int) -> Pair:
    """The sharp image out of focus: each point a disc of radius `DEFOCUS_PX`."""
    return Pair(convolve_light(pair.sharp, disc(DEFOCUS_PX)), pair.sharp)


def shake(pair: Pair, seed: int) -> Pair:
    """The sharp image blurred by one random walk of the camera, the same in every place."""
    rng = np.random.default_rng(seed)
    kernel = shake_kernel(rng, float(rng.uniform(*SHAKE_PX)))
    return Pair(convolve_light(pair.sharp, kernel), pair.sharp)


def sensor_noise(pair: Pair, seed: int) -> Pair:
    """Shot and read noise on the light of the blurred image."""
    rng = np.random.default_rng(seed)
    light = _light(pair.blurred)
    deviation = np.sqrt(SHOT_NOISE * light + READ_NOISE**2)
    return Pair(_levels(light + deviation * rng.standard_normal(light.shape)), pair.sharp)


def jpeg(pair: Pair, seed: int) -> Pair:
    """The blurred image through JPEG of quality `JPEG_QUALITY`, colours at half resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pair.blurred).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return Pair(np.array(Image.open(buffer)), pair.sharp)


def gamma(exponent: float) -> Callable[[Pair, int], Pair]:
    """Both images with every level, as a fraction of white, raised to ``exponent``."""
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)

    def apply(pair: Pair, seed: int) -> Pair:
        return Pair(table[pair.blurred], table[pair.sharp])

    return apply


def half_resolution(pair: Pair, seed: int) -> Pair:
    """Both images at half their height and width: the mean level of each square of four."""
    return Pair(_halved(pair.blurred), _halved(pair.sharp))


SHIFTS = {
    "none": Shift("as it is", unchanged),
    "stronger": Shift(f"synthetic blur, {STRONGER:g} x the motion of training", stronger_blur),
    "defocus": Shift(f"out of focus, disc of radius {DEFOCUS_PX:g} px", defocus),
    "shake": Shift(f"uniform shake of {SHAKE_PX[0]:g} to {SHAKE_PX[1]:g} px", shake),
    "noise": Shift(f"sensor noise, shot {SHOT_NOISE:g}, read {READ_NOISE:g}", sensor_noise),
    "jpeg30": Shift(f"JPEG of quality {JPEG_QUALITY}", jpeg),
    "gamma0.7": Shift("both images to the power of 0.7", gamma(0.7)),
    "gamma1.5": Shift("both images to the power of 1.5", gamma(1.5)),
    "half": Shift("both images at half resolution", half_resolution),
}


def disc(radius_px: float) -> Kernel:
    """A disc of sum 1 on an odd square; a pixel on its edge counts by the part inside."""
    reach, parts = int(np.ceil(radius_px)), 8
    offsets = (np.arange((2 * reach + 1) * parts) + 0.5) / parts - reach - 0.5
    inside = np.hypot(offsets[:, None], offsets[None, :]) <= radius_px
    kernel = inside.reshape(2 * reach + 1, parts, 2 * reach + 1, parts).mean(axis=(1, 3))
    return kernel / kernel.sum()


def shake_kernel(rng: np.random.Generator, extent_px: float) -> Kernel:
    """A random walk whose speed is one too, as a kernel of sum 1; its mean lies in the middle.

    The longer side of the path is ``extent_px``.
    """
    speed = np.zeros(2)
    places = [np.zeros(2)]
    for _ in range(16 * int(np.ceil(extent_px))):
        speed = 0.95 * speed + rng.standard_normal(2)
        places.append(places[-1] + speed)
    path = np.array(places)
    path = (path - path.mean(axis=0)) * (extent_px / np.ptp(path, axis=0).max())
    reach = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    low = np.floor(path).astype(int)
    part = path - low
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - part[:, 0]) * np.abs(1 - right - part[:, 1])
            np.add.at(kernel, (low[:, 0] + down + reach, low[:, 1] + right + reach), weight)
    return kernel / kernel.sum()


def convolve_light(frame: Frame, kernel: Kernel) -> Frame:
    """Convolve the light of ``frame``, uint8 (H, W, 3), with an odd square; edges are mirrored."""
    reach = kernel.shape[0] // 2
    light = np.pad(_light(frame), ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    shape = light.shape[:2]
    spectrum = np.fft.rfft2(kernel, s=shape)[:, :, None]
    result = np.fft.irfft2(np.fft.rfft2(light, axes=(0, 1)) * spectrum, s=shape, axes=(0, 1))
    # A kernel of 2 reach + 1 moves the result by reach: what is whole begins at twice that.
    return _levels(result[2 * reach :, 2 * reach :])


def _halved(frame: Frame) -> Frame:
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    squares = frame[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)


def _light(frame: Frame) -> npt.NDArray[np.float64]:
    light: npt.NDArray[np.float64] = ((np.arange(256) / 255) ** GAMMA)[frame]
    return light


def _levels(light: npt.NDArray[np.float64]) -> Frame:
    levels: Frame = np.rint(255 * np.clip(light, 0, 1) ** (1 / GAMMA)).astype(np.uint8)
    return levels
