from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeadapt.errors import ArrayError, ImageError
from edgeadapt.image import (
    SUFFIXES,
    from_network,
    padded_size,
    read_image,
    to_network,
    write_image,
)

sides = st.integers(1, 23)
multiples = st.sampled_from([1, 2, 3, 4, 16])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".jpg", ".jpeg"}))
def test_a_lossless_format_gives_back_every_bit(tmp_path: Path, suffix: str) -> None:
    image = noise(5, 7)
    write_image(tmp_path / f"x{suffix}", image)
    assert np.array_equal(read_image(tmp_path / f"x{suffix}"), image)


def test_jpeg_is_near(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:32, 0:40]
    image = np.stack([4 * rows, 5 * columns, 255 - 6 * rows], axis=2).astype(np.uint8)
    write_image(tmp_path / "x.jpg", image)
    error = read_image(tmp_path / "x.jpg").astype(int) - image
    # Quality 95 quantises the 8x8 coefficients by steps of 1 to 12: a few levels, on a smooth ramp.
    assert 0 < np.abs(error).max() <= 8


def test_gray_files_have_three_equal_channels(tmp_path: Path) -> None:
    gray = noise(3, 4)[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.stack([gray] * 3, axis=2))


def test_a_large_image_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(12, 13)
    write_image(tmp_path / "x.png", image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns from here, refuses from 200
    assert np.array_equal(read_image(tmp_path / "x.png"), image)


def test_alpha_is_dropped_and_the_colour_below_it_kept(tmp_path: Path) -> None:
    image = noise(3, 4)
    alpha = np.array([[0, 1, 128, 255]] * 3, np.uint8)
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), image)


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_a_palette_is_looked_up(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    colours = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    image.putpalette([level for colour in colours for level in colour])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "x.png", **options)
    expected = [[colours[0], colours[1]], [colours[2], colours[1]]]
    assert read_image(tmp_path / "x.png").tolist() == [[list(c) for c in row] for row in expected]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[:, :, 1] = cmyk[:, :, 2] = 255  # magenta and yellow ink: red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.tif")
    assert np.array_equal(read_image(tmp_path / "x.tif")[0, 0], [255, 0, 0])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    # value * 255 / 65535 = value / 257, rounded
    assert read_image(tmp_path / f"x{suffix}")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_samples_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match=r"32-bit samples \(mode F\).*Hint: convert it"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = noise(5, 7)
    # How each stored image looks, from the EXIF standard (tag 0x0112): rows x columns of the scene.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), upright)


def png(height: int = 20, width: int = 20) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(height, width)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "not an image"),
        (png()[: len(png()) // 2], "cannot be read as an image"),
        (png()[:20], "cannot be read as an image|not an image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(file)
    text = str(caught.value)
    assert str(file) in text
    assert "Hint: " in text
    assert "\n" not in text


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="cannot be read as an image"):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    content = bytearray(png())
    content[16:24] = struct.pack(">II", 20000, 20000)  # IHDR: 400 megapixels from a small file
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match="400000000 pixels"):
        read_image(tmp_path / "x.png")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_an_image_or_an_image_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]))
    stream = io.BytesIO()
    Image.fromarray(noise(9, 11)).save(stream, suffix)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    file = tmp_path / "x"
    file.write_bytes(content)
    with suppress(ImageError):
        image = read_image(file)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


def test_an_unwritable_place_is_an_image_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for target in (tmp_path / "file" / "x.png", tmp_path / "no" / "x.png", tmp_path / "folder.png"):
        with pytest.raises(ImageError, match=r"cannot be written.*Hint:"):
            write_image(target, noise(2, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_format_that_cannot_hold_the_image_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.webp"
    target.write_bytes(b"old")
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(target, np.zeros((1, 16384, 3), np.uint8))  # WebP ends at 16383
    assert [path.name for path in tmp_path.iterdir()] == ["x.webp"]
    assert target.read_bytes() == b"old"


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'.xyz'.*use one of .bmp, .jpeg, .jpg, .png"):
        write_image(tmp_path / "x.xyz", noise(2, 2))


@pytest.mark.parametrize(
    ("image", "got"),
    [
        ([[1]], "list"),
        (np.zeros((2, 2, 3), np.float32), r"float32 \(2, 2, 3\)"),
        (np.zeros((2, 2), np.uint8), r"uint8 \(2, 2\)"),
        (np.zeros((2, 2, 4), np.uint8), r"uint8 \(2, 2, 4\)"),
        (np.zeros((0, 2, 3), np.uint8), r"uint8 \(0, 2, 3\)"),
    ],
)
def test_what_is_no_frame_is_named(tmp_path: Path, image: object, got: str) -> None:
    with pytest.raises(ArrayError, match=got):
        write_image(tmp_path / "x.png", image)  # type: ignore[arg-type]


def test_black_gray_and_white_are_where_the_contract_says() -> None:
    image = np.array([[[0, 51, 255]]], np.uint8)
    assert to_network(image, 1).ravel().tolist() == [-1.0, np.float32(-0.6), 1.0]


@given(height=sides, width=sides, multiple=multiples, seed=st.integers(0, 9))
def test_padding_is_numpys_reflection(height: int, width: int, multiple: int, seed: int) -> None:
    image = noise(height, width, seed)
    array = to_network(image, multiple, out=None)
    assert array.shape == (1, 3, *padded_size(height, width, multiple))
    assert array.flags.c_contiguous
    below, right = array.shape[2] - height, array.shape[3] - width
    padded = np.pad(image, ((0, below), (0, right), (0, 0)), mode="reflect")
    expected = (padded.astype(np.float64) / 127.5 - 1.0).transpose(2, 0, 1)[None]
    # One rounding to float32 of values up to 1: half an ulp.
    np.testing.assert_allclose(array, expected, rtol=0, atol=2.0**-24)


@given(height=sides, width=sides, multiple=multiples, seed=st.integers(0, 9))
def test_the_way_in_and_out_gives_back_every_bit(
    height: int, width: int, multiple: int, seed: int
) -> None:
    image = noise(height, width, seed)
    assert np.array_equal(from_network(to_network(image, multiple), height, width), image)


def test_views_are_taken_as_they_look() -> None:
    image = noise(9, 12)
    view = image[::2, ::-3]
    assert np.array_equal(to_network(view, 4), to_network(np.ascontiguousarray(view), 4))


def test_out_is_written_in_full_and_checked() -> None:
    out = np.full((1, 3, 8, 8), np.nan, np.float32)
    assert to_network(noise(5, 6), 4, out=out) is out
    assert np.isfinite(out).all()
    with pytest.raises(ArrayError, match=r"must be float32 \(1, 3, 8, 8\), got float32 \(1, 3, 8"):
        to_network(noise(5, 6), 4, out=np.empty((1, 3, 8, 4), np.float32))


def test_values_outside_are_clamped_and_halves_go_to_the_even_level() -> None:
    # 2.0 / 127.5 steps from -1: level 0.5 is (0.5 / 127.5) - 1; chosen where float32 is exact.
    levels = np.array([-9.0, 9.0, -np.inf, np.inf, 0.0, 1.0 / 255 * 0], np.float32)
    array = np.broadcast_to(levels, (1, 3, 1, 6)).astype(np.float32)
    # 0.0 is level 127.5, which rounds to 128, the even one.
    assert from_network(array, 1, 6)[0, :, 0].tolist() == [0, 255, 0, 255, 128, 128]


def test_what_is_not_a_number_is_refused() -> None:
    array = np.zeros((1, 3, 4, 4), np.float32)
    array[0, 1, 2, 3] = np.nan
    with pytest.raises(ArrayError, match="1 of 48 values are not numbers"):
        from_network(array, 4, 4)
    assert from_network(array, 2, 4).shape == (2, 4, 3)  # the padding is not looked at
