"""Odd and hostile image files: read as what they show, or refused by name with the fix."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hatch_ray.data.images import FORMATS, MAX_PIXELS, image_size, load_depth, load_image
from tests.support.pictures import photo

SAVED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG of these header fields, whatever its rows hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and ";" in str(caught.value)


@pytest.mark.parametrize("form", SAVED)
def test_each_format_is_read_and_half_of_it_is_refused(tmp_path: Path, form: str) -> None:
    data = saved(photo(1), form)
    path = tmp_path / "view.img"
    path.write_bytes(data)
    difference = np.asarray(load_image(path), dtype=float) - np.asarray(photo(1))
    assert np.abs(difference).mean() < 12  # GIF has 256 colours
    path.write_bytes(data[: len(data) // 2])
    refused(path, "cannot be decoded")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", SAVED)
def test_damaged_bytes_give_an_image_or_a_named_refusal(tmp_path: Path, form: str) -> None:
    rng = random.Random(3)
    data = saved(photo(2, 40, 30), form)
    path = tmp_path / "view.img"
    for _ in range(120):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(min(len(broken), rng.choice((60, len(broken)))))] = rng.randrange(256)
        path.write_bytes(broken)
        for load in (load_image, load_depth, image_size):
            refusal = ""
            try:
                load(path)
            except ValueError as error:
                refusal = str(error)
            assert not refusal or str(path) in refusal


@pytest.mark.parametrize("side", [7_100, 12_000, 60_000])
def test_a_small_file_of_many_pixels_is_refused_unread(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 2, b"\x00" * 1000))
    refused(path, "too many pixels")
    for load in (load_depth, image_size):
        with pytest.raises(ValueError, match=r"bomb\.png has too many pixels"):
            load(path)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.jpg"
    photo(3).convert("CMYK").save(path)
    assert load_image(path).mode == "RGB"
    assert np.abs(np.asarray(load_image(path), dtype=float) - np.asarray(photo(3))).mean() < 4


def test_sixteen_bit_grey_is_depth_and_sixteen_bit_colour_is_colour(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 40), 1500, np.uint16)).save(path)
    refused(path, r"mode I;16, as depth maps do")
    assert load_depth(path)[0, 0] == 1.5
    row = b"\x00" + bytes([200, 7, 100, 7, 50, 7]) * 40
    path.write_bytes(png(40, 40, 16, 2, row * 40))
    assert load_image(path).getpixel((20, 20)) == (200, 100, 50)


def test_a_palette_with_a_transparent_colour_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "palette.png", transparency=1)
    assert load_image(tmp_path / "palette.png").getpixel((5, 5)) == (10, 200, 30)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_turned_photo_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "turned.img"
    exif = Image.Exif()
    exif[0x0112] = 6
    path.write_bytes(saved(photo(4), form, exif=exif))
    refused(path, r"EXIF orientation 6\); save it upright")
    exif[0x0112] = 1
    path.write_bytes(saved(photo(4), form, exif=exif))
    assert load_image(path).size == (112, 112)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "animated.img"
    path.write_bytes(saved(photo(5), form, save_all=True, append_images=[photo(6)]))
    refused(path, "has 2 frames; write the one")


def test_the_first_picture_of_a_phones_jpeg_is_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    path.write_bytes(saved(photo(7), "MPO", save_all=True, append_images=[photo(8)]))
    assert np.abs(np.asarray(load_image(path), dtype=float) - np.asarray(photo(7))).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (27, 100), (2_801, 28), (28, 2_801)])
def test_shapes_that_the_model_cannot_see_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "thin.png"
    Image.new("RGB", size).save(path)
    refused(path, f"is {size[0]} x {size[1]}; give one with sides of at least 28")
    with pytest.raises(ValueError, match=r"thin\.png is"):
        image_size(path)


def test_no_format_that_starts_a_program_is_opened(tmp_path: Path) -> None:
    assert "EPS" not in FORMATS
    path = tmp_path / "view.png"
    path.write_bytes(saved(photo(9), "EPS"))
    refused(path, "cannot be decoded")
