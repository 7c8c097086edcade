"""The files of a COLMAP model, binary or text: cameras, images with poses and keypoints, points.

As COLMAP's doc/format.rst and src/colmap/scene/reconstruction_io_binary.cc have them. Poses are world-to-camera, the
middle of the top left pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scenes.cursor import Cursor
from hatch_ray.geometry.lens import Lens
from hatch_ray.geometry.se3 import camera_to_world

MODELS = (
    ("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12),
)  # fmt: skip
"""By number: name, count of parameters."""
READ = dict(MODELS[:5])
ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
PARTS = ("cameras", "images", "points3D")
KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
"""A point of 2^64 - 1 is none."""
Point = tuple[int, tuple[np.ndarray, float]]


@dataclass(frozen=True)
class ImageRecord:
    """One image of a model: quaternion w x y z and translation of world-to-camera, keypoints as KEYPOINT."""

    id: int
    quaternion: np.ndarray
    translation: np.ndarray
    camera: int
    name: str
    keypoints: np.ndarray

    def pose(self) -> np.ndarray:
        """(4, 4) camera-to-world. Raises Refusal for a quaternion that is no rotation."""
        length = float(np.linalg.norm(self.quaternion))
        if not abs(length - 1) < 1e-2:
            raise Refusal("broken pose", f"{self.name}: its quaternion has length {length:g}, a rotation's has 1")
        rotation = Rotation.from_quat(self.quaternion, scalar_first=True).as_matrix()
        return camera_to_world(rotation, self.translation)


@dataclass(frozen=True)
class Model:
    """A sparse model: lenses by camera's id, images in order of their names, points by id: xyz (3,) and error."""

    lenses: dict[int, Lens]
    images: list[ImageRecord]
    points: dict[int, tuple[np.ndarray, float]]


def part_file(folder: Path, part: str) -> Path | None:
    """The .bin file of a part, else its .txt file."""
    return next((file for file in (folder / f"{part}.bin", folder / f"{part}.txt") if file.is_file()), None)


def read_model(folder: Path) -> Model:
    """Raises ValueError: a missing or cut file, a camera model that is not read, an image without a camera."""
    found = [part_file(folder, part) for part in PARTS]
    missing = [f"{part}.bin or {part}.txt" for part, file in zip(PARTS, found, strict=True) if file is None]
    if missing:
        raise ValueError(f"{folder} has no {', no '.join(missing)}; copy the whole model (points3D.txt may be empty)")
    cameras, images, points = (file for file in found if file is not None)
    lenses = dict(_cameras_bin(cameras) if cameras.suffix == ".bin" else _cameras_txt(cameras))
    records = list(_images_bin(images) if images.suffix == ".bin" else _images_txt(images))
    for image in records:
        if image.camera not in lenses:
            raise ValueError(f"{images}: {image.name} is of camera {image.camera}, which {cameras} lacks")
    known = dict(_points_bin(points) if points.suffix == ".bin" else _points_txt(points))
    return Model(lenses, sorted(records, key=lambda image: image.name), known)


def _count(file: Path, camera: int, model: str) -> int:
    if model not in READ:
        raise ValueError(
            f"{file}: camera {camera} has model {model}; read are {', '.join(READ)}: run COLMAP's image_undistorter, "
            "and give its folder"
        )
    return READ[model]


def _lens(file: Path, camera: int, model: str, size: tuple[int, int], values: list[float]) -> Lens:
    if model in ONE_FOCAL:
        values = [values[0], *values]
    k1, k2, p1, p2 = [*values[4:], 0.0, 0.0, 0.0, 0.0][:4]
    try:
        return Lens.of((values[0], values[1]), (values[2], values[3]), size, (k1, k2, p1, p2))
    except ValueError as error:
        raise ValueError(f"{file}: camera {camera} ({model}) {error}") from None


def _cameras_bin(file: Path) -> Iterator[tuple[int, Lens]]:
    cursor = Cursor(file)
    for _ in range(cursor.take("Q", "the number of cameras")[0]):
        camera, number, width, height = cursor.take("IiQQ", "a camera")
        model = MODELS[number][0] if 0 <= number < len(MODELS) else f"number {number}"
        values = cursor.take(f"{_count(file, camera, model)}d", f"camera {camera}")
        yield camera, _lens(file, camera, model, (width, height), list(values))


def _images_bin(file: Path) -> Iterator[ImageRecord]:
    cursor = Cursor(file)
    for _ in range(cursor.take("Q", "the number of images")[0]):
        image, *numbers, camera = cursor.take("I7dI", "an image")
        name = cursor.text(f"the name of image {image}")
        keypoints = cursor.array(KEYPOINT, cursor.take("Q", f"the keypoints of {name}")[0], f"the keypoints of {name}")
        yield ImageRecord(image, np.array(numbers[:4]), np.array(numbers[4:]), camera, name, keypoints)


def _points_bin(file: Path) -> Iterator[Point]:
    cursor = Cursor(file)
    for _ in range(cursor.take("Q", "the number of points")[0]):
        point, x, y, z, _, _, _, error, length = cursor.take("Q3d3BdQ", "a point")
        cursor.skip(8 * length, f"the track of point {point}")
        yield point, (np.array([x, y, z]), error)


class _Line:
    """One line of a text file, and where it stands."""

    def __init__(self, file: Path, number: int, text: str, split: int = -1) -> None:
        self.file, self.number, self.text = file, number, text
        self.words = text.split(maxsplit=split)

    def floats(self, first: int, last: int) -> list[float]:
        """Numbers of words `first` up to `last`. Raises ValueError where they are not there."""
        if len(self.words) < last:
            raise ValueError(
                f"{self.file} line {self.number} has {len(self.words)} words, expected {last}; copy it again"
            )
        try:
            return [float(word) for word in self.words[first:last]]
        except ValueError as error:
            raise ValueError(f"{self.file} line {self.number}: {error}; copy it again") from None


def _lines(file: Path, split: int = -1) -> Iterator[_Line]:
    """Lines that are no comments; empty ones too, which mean something in images.txt."""
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not text.startswith("#"):
            yield _Line(file, number, text.strip(), split)


def _cameras_txt(file: Path) -> Iterator[tuple[int, Lens]]:
    for line in _lines(file):
        if line.words:
            (camera,), (width, height) = line.floats(0, 1), line.floats(2, 4)
            model = line.words[1]
            values = line.floats(4, 4 + _count(file, int(camera), model))
            yield int(camera), _lens(file, int(camera), model, (int(width), int(height)), values)


def _images_txt(file: Path) -> Iterator[ImageRecord]:
    lines = _lines(file, split=9)
    for line in lines:
        if not line.words:
            continue
        image, *numbers, camera = line.floats(0, 9)
        below = next(lines, _Line(file, line.number + 1, ""))
        below.words = below.text.split()
        if len(line.words) < 10 or len(below.words) % 3:
            raise ValueError(
                f"{file} line {line.number}: no name, or keypoints below that are no triples; copy it again"
            )
        triples = np.array(below.floats(0, len(below.words))).reshape(-1, 3)
        keypoints = np.zeros(len(triples), KEYPOINT)
        keypoints["xy"], keypoints["point"] = triples[:, :2], triples[:, 2].astype(np.int64).astype(np.uint64)
        yield ImageRecord(
            int(image), np.array(numbers[:4]), np.array(numbers[4:]), int(camera), line.words[9], keypoints
        )


def _points_txt(file: Path) -> Iterator[Point]:
    for line in _lines(file):
        if line.words:
            point, x, y, z, _, _, _, error = line.floats(0, 8)
            yield int(point), (np.array([x, y, z]), error)
