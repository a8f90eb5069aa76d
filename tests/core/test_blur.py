"""Synthetic blur against textbook computations of the same thing."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from edgeadapt.blur import average_frames, draw_parameters, synthesize_blur
from edgeadapt.blur_parameters import BlurParameters, MovingObject
from edgeadapt.errors import ArrayError, ConfigError
from edgeadapt.testing import photo as textured
from edgeadapt.warp import Box, Pose, sample_moved

STILL = Pose(0.0, 0.0, 0.0)
# float32 holds a coordinate near 64 to 2^-17; times a slope of at most 1, and a few roundings
WARP_ATOL = 2.0**-14


def linear_mean(frames: list[np.ndarray], gamma: float = 2.2) -> np.ndarray:
    light = np.mean([(frame / 255.0) ** gamma for frame in frames], axis=0)
    return 255 * light ** (1 / gamma)


def ellipse(path: tuple[Pose, ...], content: tuple[float, float] = (0.0, 0.0)) -> MovingObject:
    return MovingObject((0.5, 0.5), (0.2, 0.3), 0.4, (), 2.0, content, path)


@pytest.mark.parametrize(("shape", "angle"), [((37, 53), 3.0), ((53, 37), -20.0), ((9, 64), 0.0)])
def test_sampling_equals_scipy_bilinear_interpolation(shape: tuple[int, int], angle: float) -> None:
    planes = np.random.default_rng(1).random((3, *shape)).astype(np.float32)
    box, pose, centre = Box(3, 2, shape[0] - 5, shape[1] - 3), Pose(2.3, -4.7, angle), (11.5, 13.0)
    turn = np.radians(angle)
    rows, columns = np.mgrid[box.top : box.bottom, box.left : box.right].astype(np.float64)
    rows, columns = rows - centre[0] - pose.y_px, columns - centre[1] - pose.x_px
    y = np.cos(turn) * rows - np.sin(turn) * columns + centre[0]
    x = np.sin(turn) * rows + np.cos(turn) * columns + centre[1]
    expected = [map_coordinates(plane, [y, x], order=1, mode="nearest") for plane in planes]
    np.testing.assert_allclose(sample_moved(planes, box, pose, centre), expected, atol=WARP_ATOL)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_an_image_one_pixel_wide_can_be_sampled(shape: tuple[int, int]) -> None:
    planes = np.random.default_rng(2).random((1, *shape)).astype(np.float32)
    moved = sample_moved(planes, Box(0, 0, *shape), STILL, (0.0, 0.0))
    np.testing.assert_array_equal(moved, planes)


def test_without_motion_both_images_are_the_photo() -> None:
    photo = textured(3, 21, 34)
    pair = synthesize_blur(photo, BlurParameters((STILL,) * 5))
    np.testing.assert_array_equal(pair.blurred, photo)
    np.testing.assert_array_equal(pair.sharp, photo)


def test_a_camera_moving_by_whole_pixels_averages_shifted_photos_in_linear_light() -> None:
    photo = textured(4, 31, 43)
    moves = [(-2, 1), (-1, 0), (0, 0), (1, 1), (2, 3)]
    pair = synthesize_blur(photo, BlurParameters(tuple(Pose(y, x, 0.0) for y, x in moves)), 4)
    shifted = [np.roll(photo, move, (0, 1))[4:-4, 4:-4] for move in moves]
    np.testing.assert_array_equal(pair.sharp, photo[4:-4, 4:-4])
    # half a level for rounding to 8 bits, and a little for float32
    assert np.abs(pair.blurred - linear_mean(shifted)).max() <= 0.51


def test_a_margin_gives_what_the_whole_photo_gives_there() -> None:
    photo = textured(5, 61, 75)
    camera = tuple(Pose(1.3 * t, -0.7 * t, 0.5 * t) for t in range(-3, 4))
    parameters = BlurParameters(camera)
    margin = 12
    assert parameters.reach_px(61 - 2 * margin, 75 - 2 * margin) <= margin
    whole, part = synthesize_blur(photo, parameters), synthesize_blur(photo, parameters, margin)
    inner = whole.blurred[margin:-margin, margin:-margin].astype(int)
    # the same sums with other float32 coordinates: the last bit may round the other way
    assert np.abs(inner - part.blurred).max() <= 1


def test_an_object_moves_in_front_of_a_background_that_stands_still() -> None:
    photo = textured(6, 60, 60)
    path = tuple(Pose(0.0, 2.0 * t, 0.0) for t in range(-2, 3))
    moved = synthesize_blur(photo, BlurParameters((STILL,) * 5, (ellipse(path),)))
    np.testing.assert_array_equal(moved.sharp, photo)  # its texture comes from where it is
    changed = np.abs(moved.blurred.astype(int) - photo).max(axis=2) > 3
    rows, columns = np.nonzero(changed)
    # radii of 12 and 18 pixels about (30, 30), turned, soft by 1, moved by 4 to each side
    assert changed[30, 30 - 6 : 30 + 6].mean() > 0.8
    assert np.abs(rows - 30).max() <= 18 + 2
    assert np.abs(columns - 30).max() <= 18 + 1 + 4 + 1


def test_an_object_shows_its_own_texture_in_the_sharp_target() -> None:
    photo = textured(7, 60, 60)
    parameters = BlurParameters((STILL,) * 3, (ellipse((STILL,) * 3, content=(-0.25, 0.4)),))
    sharp = synthesize_blur(photo, parameters).sharp
    np.testing.assert_array_equal(sharp[30, 30], photo[30 - 15, 30 + 24])
    np.testing.assert_array_equal(sharp[2, 2], photo[2, 2])


def test_a_side_cuts_a_straight_edge_through_the_object() -> None:
    photo = textured(8, 60, 60)
    whole = ellipse((STILL,) * 3, content=(0.3, 0.3))
    half = replace(whole, angle=0.0, sides=((0.0, 0.5),))  # u <= 0.5: 6 of 12 pixels downwards
    sharp = synthesize_blur(photo, BlurParameters((STILL,) * 3, (half,))).sharp
    np.testing.assert_array_equal(sharp[34, 30], photo[34 + 18, 30 + 18])
    np.testing.assert_array_equal(sharp[39, 30], photo[39, 30])


def test_noise_has_the_variance_it_was_asked_for() -> None:
    level, shot, read = 128, 0.004, 0.02
    parameters = BlurParameters((STILL,), shot_noise=shot, read_noise=read, noise_seed=9)
    photo = np.full((120, 120, 3), level, np.uint8)
    noisy = synthesize_blur(photo, parameters).blurred
    light = (noisy / 255.0) ** 2.2
    true = (level / 255) ** 2.2
    # 43200 samples fix a standard deviation to 0.35 %; 5 % is fourteen of that
    assert light.std() == pytest.approx(np.sqrt(shot * true + read**2), rel=0.05)
    assert light.mean() == pytest.approx(true, rel=0.01)


def test_jpeg_is_what_pillow_makes_of_the_blurred_image() -> None:
    photo = textured(10, 24, 32)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=60)
    pair = synthesize_blur(photo, BlurParameters((STILL,), jpeg_quality=60))
    np.testing.assert_array_equal(pair.blurred, np.array(Image.open(buffer)))
    np.testing.assert_array_equal(pair.sharp, photo)


def test_bright_lights_leave_brighter_streaks_and_the_target_stays_white() -> None:
    photo = np.zeros((9, 21, 3), np.uint8)
    photo[4, 10] = 255
    camera = tuple(Pose(0.0, float(t), 0.0) for t in range(-2, 3))
    plain = synthesize_blur(photo, BlurParameters(camera))
    bright = synthesize_blur(photo, BlurParameters(camera, highlight_gain=4.0))
    assert plain.blurred[4, 9, 0] == round(255 * (1 / 5) ** (1 / 2.2))
    assert bright.blurred[4, 9, 0] == round(255 * (4 / 5) ** (1 / 2.2))
    np.testing.assert_array_equal(bright.sharp, photo)


def test_average_frames_is_the_mean_in_linear_light() -> None:
    frames = [textured(20 + i, 11, 17) for i in range(7)]
    assert np.abs(average_frames(frames) - linear_mean(frames)).max() <= 0.51
    assert np.abs(average_frames(frames, 1.0) - np.mean(frames, axis=0)).max() <= 0.51


def test_the_same_seed_draws_the_same_blur_and_json_keeps_it() -> None:
    photo = textured(11, 40, 56)
    drawn = [draw_parameters(seed) for seed in range(20)]
    assert drawn == [draw_parameters(seed) for seed in range(20)]
    assert len(set(drawn)) == 20
    for parameters in drawn:
        again = BlurParameters.from_json(parameters.to_json())
        assert again == parameters
    first, second = synthesize_blur(photo, drawn[0]), synthesize_blur(photo, drawn[0])
    np.testing.assert_array_equal(first.blurred, second.blurred)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_drawn_motions_stay_within_what_the_strength_allows(strength: float) -> None:
    for seed in range(100):
        parameters = draw_parameters(seed, strength)
        y, x, degrees = (
            np.array([getattr(pose, name) for pose in parameters.camera])
            for name in ("y_px", "x_px", "degrees")
        )
        assert np.hypot(np.ptp(y), np.ptp(x)) <= 24 * strength + 1e-9
        assert np.ptp(degrees) <= 2 * strength + 1e-9
        assert parameters.camera[len(y) // 2].length_px == 0
    if strength == 1.0:
        assert np.ptp(x) > 0


def test_every_drawn_blur_suits_an_image_of_one_pixel() -> None:
    for seed in range(10):
        pair = synthesize_blur(textured(seed, 1, 1), draw_parameters(seed))
        assert pair.blurred.shape == pair.sharp.shape == (1, 1, 3)


def test_wrong_arguments_are_named() -> None:
    photo = textured(12, 8, 8)
    with pytest.raises(ArrayError, match=r"sharp must be uint8 \(H, W, 3\), got float64"):
        synthesize_blur(photo / 1.0, BlurParameters((STILL,)))  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match=r"margin must leave a pixel of \(8, 8\), got 4"):
        synthesize_blur(photo, BlurParameters((STILL,)), 4)
    with pytest.raises(ArrayError, match="at least one frame, got none"):
        average_frames([])
    with pytest.raises(ArrayError, match=r"must be \(8, 8, 3\), got \(7, 8, 3\)"):
        average_frames([photo, photo[1:]])
    with pytest.raises(ConfigError, match=r"one odd number of poses, got \[3, 5\]"):
        BlurParameters((STILL,) * 3, (ellipse((STILL,) * 5),))
    with pytest.raises(ConfigError, match="strength must be 0 or more, got -1"):
        draw_parameters(0, -1.0)
    with pytest.raises(ConfigError, match="not blur parameters"):
        BlurParameters.from_json('{"camera": 3}')
