"""Pixels: files that can and cannot be read, marks where SPAR puts them, content hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hatch_ray.data.images import image_hash, load_depth, load_image, save_depth, save_image, shrink
from hatch_ray.data.markers import COLORS, box_stroke, draw_marks, point_radius
from hatch_ray.data.store import model_images
from hatch_ray.sample import Mark, Sample, View
from tests.support.pictures import photo


def one_view(path: Path, marks: tuple[Mark, ...]) -> Sample:
    return Sample("s", "scene", "task", "number", "?", "1", (View(path),), marks)


def test_colour_survives_the_disk(tmp_path: Path) -> None:
    rgb = np.asarray(photo(1))
    save_image(tmp_path / "a" / "view.png", rgb)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a" / "view.png")), rgb)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["view.png"]


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    photo(2).convert("L").save(tmp_path / "grey.png")
    photo(2).convert("RGBA").save(tmp_path / "alpha.png")
    assert load_image(tmp_path / "grey.png").mode == load_image(tmp_path / "alpha.png").mode == "RGB"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "does not exist"), (b"", "is empty"), (b"not an image", "cannot be decoded"), ("cut", "cannot be decoded")],
)
def test_broken_images_are_named(tmp_path: Path, content: bytes | str | None, reason: str) -> None:
    path = tmp_path / "broken.png"
    if content == "cut":
        photo(3).save(path)
        content = path.read_bytes()[:400]
    if content is not None:
        path.write_bytes(content)
    for load in (load_image, load_depth):
        with pytest.raises(ValueError, match=rf"broken\.png.*{reason}"):
            load(path)


def test_depth_is_metres_and_has_two_values_for_no_reading(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535, 1500]], dtype=np.uint16)).save(tmp_path / "d.png")
    depth = load_depth(tmp_path / "d.png")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[0, 0, 1.5]])


@given(st.lists(st.floats(0.001, 65.5), min_size=1, max_size=30))
def test_depth_keeps_half_a_millimetre(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("depth") / "d.png"
    save_depth(path, np.array([values]))
    np.testing.assert_allclose(load_depth(path)[0], values, atol=0.00051)


def test_depth_that_cannot_be_said_is_no_reading(tmp_path: Path) -> None:
    save_depth(tmp_path / "d.png", np.array([[np.nan, np.inf, -1, 70, 2]]))
    np.testing.assert_allclose(load_depth(tmp_path / "d.png"), [[0, 0, 0, 0, 2]])


def test_colour_file_is_not_depth(tmp_path: Path) -> None:
    photo(4).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match="mode RGB; depth must be a 16-bit PNG"):
        load_depth(tmp_path / "c.png")


def test_hash_names_pixels_not_files(tmp_path: Path) -> None:
    image = photo(5)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    assert image_hash(load_image(tmp_path / "a.png")) == image_hash(load_image(tmp_path / "b.bmp")) == image_hash(image)
    other = image.copy()
    other.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    assert image_hash(other) != image_hash(image)
    same_bytes = Image.frombytes("RGB", (56, 224), image.tobytes())
    assert image_hash(same_bytes) != image_hash(image)


@given(st.integers(60, 940), st.integers(60, 940), st.sampled_from(sorted(COLORS)))
def test_point_is_a_disc_around_its_pixel(x: int, y: int, color: str) -> None:
    grey = Image.new("RGB", (224, 112), (90, 90, 90))
    pixels = np.asarray(draw_marks(grey, [Mark(0, color, (x, y))]))  # type: ignore[arg-type]
    rows, columns = np.nonzero((pixels == COLORS[color]).all(axis=2))
    assert abs(columns.mean() - int(x * 224 / 1000)) <= 0.5
    assert abs(rows.mean() - int(y * 112 / 1000)) <= 0.5
    area = np.pi * point_radius(224) ** 2
    assert 0.8 * area < rows.size < 1.5 * area
    assert (np.asarray(grey) == 90).all()


def test_box_ink_lies_around_the_object() -> None:
    grey = Image.new("RGB", (112, 112), (90, 90, 90))
    pixels = np.asarray(draw_marks(grey, [Mark(0, "red", (250, 250, 750, 500))]))
    ink = (pixels == COLORS["red"]).all(axis=2)
    assert not ink[30:55, 30:82].any()
    rows, columns = np.nonzero(ink)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (26, 86, 26, 58)


def test_marks_have_spars_size_at_spars_width() -> None:
    assert (point_radius(1296), box_stroke(1296)) == (20, 20)
    assert (point_radius(1920), box_stroke(1920)) == (20, 20)
    assert (point_radius(112), box_stroke(112)) == (3, 2)
    grey = Image.new("RGB", (1296, 968), (90, 90, 90))
    ink = np.asarray(draw_marks(grey, [Mark(0, "red", (100, 200, 300, 400))]))[290] == COLORS["red"]
    (columns,) = np.nonzero(ink.all(axis=1))
    left, right = 129, 388  # 100 and 300 of 1000 in pixels, truncated
    assert (columns[0], columns[-1]) == (int(left - 17.5), int(right + 17.5))


def test_model_sees_marks_and_the_file_does_not_change(tmp_path: Path) -> None:
    photo(6, 224, 168).save(tmp_path / "v.png")
    before = (tmp_path / "v.png").read_bytes()
    sample = one_view(tmp_path / "v.png", (Mark(0, "blue", (500, 500)),))
    (image,) = model_images(sample, 10**6)
    assert image.getpixel((112, 84)) == COLORS["blue"]
    (small,) = model_images(sample, 112 * 112)
    assert small.width * small.height <= 112 * 112
    assert abs(small.width / small.height - 224 / 168) < 0.03
    assert (tmp_path / "v.png").read_bytes() == before


def test_shrink_leaves_small_images_alone() -> None:
    image = photo(7)
    assert shrink(image, 112 * 112) is image


def test_mark_on_a_view_that_is_not_there(tmp_path: Path) -> None:
    photo(8).save(tmp_path / "v.png")
    with pytest.raises(ValueError, match="marks view 1 but has 1 views"):
        model_images(one_view(tmp_path / "v.png", (Mark(1, "red", (1, 1)),)), 10**6)
