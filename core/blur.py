"""Synthetic dynamic-scene blur: shaking camera, moving objects, sensor noise and JPEG.

A sharp photo is moved along a path as the shutter stays open; the sub-frames are averaged in linear
light (gamma 2.2, as the GoPro set was made, Nah et al. 2017, section 3). The middle sub-frame is
the sharp target, so the pair is aligned. Everything random is drawn beforehand into a
`BlurParameters`, so a blur can be recorded and repeated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeadapt.blur_parameters import BlurParameters, MovingObject, draw_parameters
from edgeadapt.errors import ArrayError
from edgeadapt.warp import Box, sample_moved

__all__ = ["BlurParameters", "Pair", "average_frames", "draw_parameters", "synthesize_blur"]

Frame = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Planes = npt.NDArray[np.float32]  # (channels, H, W), linear light in [0, 1]


class Pair(NamedTuple):
    """A blurred image and its sharp target, both uint8 (H, W, 3) RGB."""

    blurred: Frame
    sharp: Frame


def synthesize_blur(sharp: Frame, parameters: BlurParameters, margin: int = 0) -> Pair:
    """Blur ``sharp``, uint8 (H, W, 3) RGB; both results are ``margin`` pixels smaller on each side.

    What moves in from outside is taken from the margin; where that does not reach, from the
    mirrored image.

    Raises:
        ArrayError: if ``sharp`` is not a uint8 (H, W, 3) array larger than twice the margin.
    """
    _check_frame("synthesize_blur: sharp", sharp)
    height, width = sharp.shape[0] - 2 * margin, sharp.shape[1] - 2 * margin
    if margin < 0 or height < 1 or width < 1:
        raise ArrayError(
            f"synthesize_blur: margin must leave a pixel of {sharp.shape[:2]}, got {margin}."
        )
    pad = max(0, parameters.reach_px(height, width) - margin)
    scene = _to_linear(
        np.pad(sharp, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric"), parameters
    )
    box = Box(margin + pad, margin + pad, height, width)
    layers = [_object_layer(scene, box, moving) for moving in parameters.objects]
    total = middle = np.zeros((3, height, width), np.float32)
    for index in range(len(parameters.camera)):
        frame = _sub_frame(scene, box, layers, parameters, index)
        total = total + frame
        if index == len(parameters.camera) // 2:
            middle = frame
    blurred = _expose(total / np.float32(len(parameters.camera)), parameters)
    exposed = _jpeg(_from_linear(blurred, parameters.gamma), parameters.jpeg_quality)
    return Pair(exposed, _from_linear(middle, parameters.gamma))


def average_frames(frames: Sequence[Frame], gamma: float = 2.2) -> Frame:
    """Mean of uint8 (H, W, 3) frames in linear light: the blur of a longer exposure.

    Raises:
        ArrayError: if there is no frame, or the frames differ in shape or are not uint8 (H, W, 3).
    """
    if not frames:
        raise ArrayError("average_frames: frames must hold at least one frame, got none.")
    total: npt.NDArray[np.float32] = np.zeros(frames[0].shape, np.float32)
    table = _gamma_table(gamma)
    for frame in frames:
        _check_frame("average_frames: every frame", frame)
        if frame.shape != total.shape:
            raise ArrayError(
                f"average_frames: every frame must be {total.shape}, got {frame.shape}."
            )
        total += table[frame]
    return _encode(total / np.float32(len(frames)), gamma)


def _sub_frame(
    scene: Planes,
    box: Box,
    layers: list[tuple[Planes, Box]],
    parameters: BlurParameters,
    index: int,
) -> Planes:
    """What the sensor sees at one instant, (3, height, width); later objects lie in front."""
    camera = parameters.camera[index]
    centre = (box.top + box.height / 2, box.left + box.width / 2)
    frame = sample_moved(scene, box, camera, centre)
    for moving, (layer, reach) in zip(parameters.objects, layers, strict=True):
        if not reach.height or not reach.width:
            continue
        middle = (reach.top + reach.height / 2, reach.left + reach.width / 2)
        moved = sample_moved(layer, reach, moving.path[index], middle)
        part = frame[:, reach.top - box.top :, reach.left - box.left :][
            :, : reach.height, : reach.width
        ]
        part *= 1 - moved[3]
        part += moved[:3]  # the layer's colours are already multiplied by its coverage
    return frame


def _object_layer(scene: Planes, box: Box, moving: MovingObject) -> tuple[Planes, Box]:
    """An object, colour times coverage and coverage (4, H, W); the part of ``box`` it reaches."""
    side = min(box.height, box.width)
    radius_y, radius_x = (max(1.0, radius * side) for radius in moving.radii)
    centre_y, centre_x = (
        box.top + moving.centre[0] * box.height,
        box.left + moving.centre[1] * box.width,
    )
    extent = (
        math.hypot(radius_y, radius_x)
        + moving.softness_px
        + max(p.length_px for p in moving.path)
        + 2
    )
    reach = Box.around(centre_y, centre_x, extent).intersection(box)
    grown = Box.around(centre_y, centre_x, extent).intersection(Box(0, 0, *scene.shape[1:]))
    layer = np.zeros((4, *scene.shape[1:]), np.float32)
    rows, columns = np.arange(grown.top, grown.bottom), np.arange(grown.left, grown.right)
    coverage = _coverage(rows - centre_y, columns - centre_x, radius_y, radius_x, moving)
    from_rows = (rows + round(moving.content[0] * box.height)) % scene.shape[1]
    from_columns = (columns + round(moving.content[1] * box.width)) % scene.shape[2]
    layer[:3, grown.top : grown.bottom, grown.left : grown.right] = (
        scene[:, from_rows[:, None], from_columns[None, :]] * coverage
    )
    layer[3, grown.top : grown.bottom, grown.left : grown.right] = coverage
    return layer, reach


def _coverage(
    rows: npt.NDArray[np.floating],
    columns: npt.NDArray[np.floating],
    radius_y: float,
    radius_x: float,
    moving: MovingObject,
) -> npt.NDArray[np.float32]:
    """How much of each pixel the object covers, in [0, 1]: an ellipse, cut by the sides."""
    cosine, sine = math.cos(moving.angle), math.sin(moving.angle)
    u = (cosine * rows[:, None] + sine * columns[None, :]) / radius_y
    v = (cosine * columns[None, :] - sine * rows[:, None]) / radius_x
    distance = np.hypot(u, v)
    for direction, offset in moving.sides:
        np.maximum(
            distance, (math.cos(direction) * u + math.sin(direction) * v) / offset, out=distance
        )
    edge = moving.softness_px / min(radius_y, radius_x)
    return np.clip((1 - distance) / edge + 0.5, 0, 1).astype(np.float32)


def _expose(light: Planes, parameters: BlurParameters) -> Planes:
    """Clip at full well; add shot noise, whose variance grows with the light, and read noise."""
    light = np.minimum(light, np.float32(1))
    if parameters.shot_noise == 0 and parameters.read_noise == 0:
        return light
    rng = np.random.default_rng(parameters.noise_seed)
    deviation = np.sqrt(parameters.shot_noise * light + parameters.read_noise**2, dtype=np.float32)
    noisy: Planes = light + deviation * rng.standard_normal(light.shape, dtype=np.float32)
    return noisy


def _to_linear(frame: Frame, parameters: BlurParameters) -> Planes:
    """Linear light (3, H, W). White becomes more than 1, so that moving lights leave streaks."""
    table = _gamma_table(parameters.gamma)
    table[250:] *= parameters.highlight_gain
    light: Planes = table[np.ascontiguousarray(frame.transpose(2, 0, 1))]
    return light


def _from_linear(planes: Planes, gamma: float) -> Frame:
    return np.ascontiguousarray(_encode(planes, gamma).transpose(1, 2, 0))


def _gamma_table(gamma: float) -> npt.NDArray[np.float32]:
    table: npt.NDArray[np.float32] = np.power(np.arange(256) / 255, gamma).astype(np.float32)
    return table


def _encode(light: Planes, gamma: float) -> Frame:
    bright = np.power(np.clip(light, 0, 1), np.float32(1 / gamma))
    frame: Frame = np.rint(255 * bright).astype(np.uint8)
    return frame


def _jpeg(frame: Frame, quality: int) -> Frame:
    """Through JPEG and back; ``quality`` 0 means not at all."""
    if not quality:
        return frame
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def _check_frame(what: str, frame: Frame) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ArrayError(f"{what} must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}.")
