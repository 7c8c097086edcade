"""ScanNet's .sens files, version 4: JPEG colour, zlib depth and camera-to-world of every frame in one file.

As ScanNet's SensReader reads them. Metres; world z is up. Frames whose pose was lost (-inf) are left out. The file is
mapped into memory, frames are decoded when asked for.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from hatch_ray.data.images import load_upright
from hatch_ray.data.rgbd_frames import on_the_photo
from hatch_ray.data.scenes.cursor import Cursor
from hatch_ray.data.scenes.posed import PosedImage, PosedScene, checked_pose, gather
from hatch_ray.geometry.lens import Lens

FORM = "sens"
LOOKS_LIKE = "one .sens file (ScanNet)"
VERSION, JPEG, ZLIB_USHORT = 4, 2, 1
POSE = np.dtype(("<f4", (4, 4)))


@dataclass(frozen=True)
class _Header:
    color: Lens
    depth: Lens
    shift: float
    """Stored depth a metre."""


@dataclass(frozen=True)
class _Part:
    """Where a frame's compressed bytes lie."""

    file: Path
    start: int
    length: int

    def bytes(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


def recognises(path: Path) -> bool:
    return path.is_dir() and len(list(path.glob("*.sens"))) == 1


def read(path: Path) -> PosedScene:
    """The scene of a folder with one .sens file. Raises ValueError: a cut file, another version or compression, cameras
    that stand apart, no usable frame.
    """
    (file,) = path.glob("*.sens")
    cursor = Cursor(file)
    header = _header(cursor)
    records: list[tuple[int, np.ndarray, _Part, _Part]] = []
    for number in range(cursor.take("Q", "the number of frames")[0]):
        what = f"frame {number}"
        pose = cursor.array(POSE, 1, what)[0].astype(float)
        _, _, color, depth = cursor.take("4Q", what)
        start = cursor.at
        cursor.skip(color + depth, what)
        records.append((number, pose, _Part(file, start, color), _Part(file, start + color, depth)))

    def posed(record: tuple[int, np.ndarray, _Part, _Part]) -> PosedImage:
        number, pose, color, depth = record
        where = f"{file} frame {number}"
        checked_pose(pose, where)
        return PosedImage(f"{number:06d}", file, header.color, pose, partial(_color, color, header.color, where),
                          partial(_depth, depth, header, where))  # fmt: skip

    scene = gather(FORM, path, records, posed, up=np.array([0.0, 0.0, 1.0]))
    return replace(scene, id=file.stem)


def _header(cursor: Cursor) -> _Header:
    (version,) = cursor.take("I", "the version")
    if version != VERSION:
        raise ValueError(f"{cursor.path} has version {version}; read is {VERSION}, which ScanNet publishes")
    cursor.skip(cursor.take("Q", "the sensor's name")[0], "the sensor's name")
    color_k, color_at, depth_k, depth_at = cursor.array(POSE, 4, "the calibration").astype(float)
    if not np.allclose([color_at, depth_at], np.eye(4), atol=1e-4):
        raise ValueError(
            f"{cursor.path}: its cameras stand apart from their poses; export it with depth moved to colour"
        )
    kinds = cursor.take("2i", "the compression")
    if kinds != (JPEG, ZLIB_USHORT):
        raise ValueError(
            f"{cursor.path} has colour compression {kinds[0]} and depth compression {kinds[1]}; read are {JPEG} "
            f"(JPEG) and {ZLIB_USHORT} (zlib)"
        )
    *sizes, shift = cursor.take("4If", "the sizes")
    try:
        return _Header(Lens(color_k[:3, :3], *sizes[:2]), Lens(depth_k[:3, :3], *sizes[2:]), shift)
    except ValueError as error:
        raise ValueError(f"{cursor.path}: a camera {error}; copy the file again") from None


def _color(part: _Part, lens: Lens, name: str) -> Image.Image:
    image = load_upright(part.bytes(), name)
    if image.size != (lens.width, lens.height):
        raise ValueError(f"{name} is {image.width} x {image.height}, its header says {lens.width} x {lens.height}")
    return image


def _depth(part: _Part, header: _Header, name: str) -> np.ndarray:
    """As the photo's camera has it."""
    color = header.color
    try:
        stored = np.frombuffer(zlib.decompress(part.bytes()), "<u2").reshape(header.depth.height, header.depth.width)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"depth of {name} cannot be read ({error}); copy the file again") from None
    depth = stored.astype(np.float32) / np.float32(header.shift)
    return on_the_photo(depth, header.depth.k, color.k, (color.width, color.height))[0]
