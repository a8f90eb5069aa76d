"""What a synthetic blur is made of, drawn from a seed and recorded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import cattrs
import numpy as np

from edgeadapt.errors import ConfigError
from edgeadapt.warp import Pose


@dataclass(frozen=True)
class MovingObject:
    """Something in front of the background; positions and sizes are fractions of the image."""

    centre: tuple[float, float]  # (y, x) as fractions of height and width
    radii: tuple[float, float]  # as fractions of the shorter side
    angle: float  # radians
    sides: tuple[
        tuple[float, float], ...
    ]  # (direction, distance) of a polygon's sides; none for an ellipse
    softness_px: float  # width of the edge
    content: tuple[
        float, float
    ]  # where in the image its texture comes from, relative to where it is
    path: tuple[Pose, ...]  # one pose a sub-frame


@dataclass(frozen=True)
class BlurParameters:
    """All that `edgeadapt.blur.synthesize_blur` needs besides the photo."""

    camera: tuple[Pose, ...]  # one pose a sub-frame, an odd number; the middle one is zero
    objects: tuple[MovingObject, ...] = ()
    highlight_gain: float = 1.0  # how much brighter than white the lights are
    shot_noise: float = 0.0  # variance of the noise at full light, 1 = white
    read_noise: float = 0.0  # standard deviation of the noise in the dark
    noise_seed: int = 0
    jpeg_quality: int = 0  # 0: no JPEG
    gamma: float = 2.2

    def __post_init__(self) -> None:
        frames = len(self.camera)
        if frames % 2 == 0 or any(len(moving.path) != frames for moving in self.objects):
            lengths = [frames, *(len(moving.path) for moving in self.objects)]
            raise ConfigError(
                f"BlurParameters: paths must have one odd number of poses, got {lengths}."
            )

    def reach_px(self, height: int, width: int) -> int:
        """How many pixels beyond the edge of a height x width image the camera sees."""
        far = math.hypot(height, width) / 2
        return (
            math.ceil(max(p.length_px + math.radians(abs(p.degrees)) * far for p in self.camera))
            + 1
        )

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BlurParameters:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: if it is not that.
        """
        try:
            return _CONVERTER.structure(json.loads(text), cls)
        except (ValueError, cattrs.BaseValidationError) as error:
            raise ConfigError(
                f"BlurParameters.from_json: not blur parameters ({error})."
            ) from error


def draw_parameters(seed: int, strength: float = 1.0) -> BlurParameters:
    """Draw a blur from a seed; ``strength`` scales all its motions.

    The camera moves by up to 24 px and turns by up to 2 degrees at strength 1, mostly much less;
    none to three objects move relative to it by up to 20 px.

    Raises:
        ConfigError: if ``strength`` is negative or not finite.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(f"draw_parameters: strength must be 0 or more, got {strength}.")
    rng = np.random.default_rng(seed)
    extent_px = strength * (1 + 23 * float(rng.beta(1.2, 2.0)))
    travels = [
        strength * float(rng.uniform(2, 20))
        for _ in range(int(rng.choice(4, p=(0.3, 0.3, 0.25, 0.15))))
    ]
    # Steps of 1.5 px and less leave no ghosts; more than 17 sub-frames cost time and add nothing up
    # to 24 px.
    frames = 2 * min(8, max(3, math.ceil(max([extent_px, *travels]) / 3))) + 1
    camera = _draw_path(rng, frames, extent_px, strength * 2 * float(rng.random()) ** 2)
    noisy, compressed = rng.random() < 0.7, rng.random() < 0.5
    return BlurParameters(
        camera=camera,
        objects=tuple(_draw_object(rng, camera, travel) for travel in travels),
        highlight_gain=1 + 4 * float(rng.random()) ** 2,
        shot_noise=8e-4 * float(rng.random()) ** 2 if noisy else 0.0,
        read_noise=8e-4 * float(rng.random()) if noisy else 0.0,
        noise_seed=int(rng.integers(2**31)),
        jpeg_quality=int(rng.integers(70, 99)) if compressed else 0,
    )


def _draw_object(
    rng: np.random.Generator, camera: tuple[Pose, ...], travel_px: float
) -> MovingObject:
    own = _draw_path(rng, len(camera), travel_px, 4 * float(rng.random()) ** 2)
    corners = int(rng.integers(3, 8))
    directions = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    polygon = tuple(
        (float(a), float(d))
        for a, d in zip(directions, rng.uniform(0.5, 0.9, corners), strict=True)
    )
    same_place = rng.random() < 0.5
    content = (
        (0.0, 0.0) if same_place else (float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8)))
    )
    return MovingObject(
        centre=(float(rng.random()), float(rng.random())),
        radii=(float(rng.uniform(0.08, 0.4)), float(rng.uniform(0.08, 0.4))),
        angle=float(rng.uniform(0, np.pi)),
        sides=polygon if rng.random() < 0.5 else (),
        softness_px=float(rng.uniform(1, 4)),
        content=content,
        path=tuple(
            Pose(a.y_px + b.y_px, a.x_px + b.x_px, a.degrees + b.degrees)
            for a, b in zip(camera, own, strict=True)
        ),
    )


def _draw_path(
    rng: np.random.Generator, frames: int, extent_px: float, turn_degrees: float
) -> tuple[Pose, ...]:
    """A path through 0, ``extent_px`` across its bounding box; heading and speed vary."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(
        rng.normal(0, rng.uniform(0, 1.2) / math.sqrt(frames), frames)
    )
    speed = np.abs(1 + 0.3 * rng.standard_normal(frames))
    path = np.cumsum(speed[:, None] * np.stack([np.sin(heading), np.cos(heading)], 1), axis=0)
    path -= path[frames // 2]
    path *= extent_px / max(float(np.hypot(*np.ptp(path, axis=0))), 1e-9)
    turn = np.cumsum(1 + 0.5 * rng.standard_normal(frames))
    turn -= turn[frames // 2]
    turn *= float(rng.choice((-1, 1))) * turn_degrees / max(float(np.ptp(turn)), 1e-9)
    return tuple(Pose(float(y), float(x), float(a)) for (y, x), a in zip(path, turn, strict=True))


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
