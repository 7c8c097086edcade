"""RealEstate10K: a list of a clip's cameras, NAME.txt, and beside it its frames, NAME/TIMESTAMP.png or .jpg.

Line 1 of the list is the video's address. Each further one has 19 numbers: a timestamp in microseconds, fx fy cx cy in
shares of width and height, two zeros, and 3x4 world-to-camera, row by row. The scale is arbitrary, up unknown; the list
names no points.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from hatch_ray.data.images import image_size
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scenes.posed import PosedImage, PosedScene, gather, posed_image
from hatch_ray.geometry.lens import Lens
from hatch_ray.geometry.se3 import camera_to_world

FORM = "realestate"
LOOKS_LIKE = (
    "a folder of frames named by timestamp, beside it the list FOLDER.txt with 19 numbers a line (RealEstate10K)"
)
NUMBERS = 19
ENDINGS = ("png", "jpg", "jpeg")


def _list_of(path: Path) -> Path:
    path = path.resolve()
    return path.parent / f"{path.name}.txt"


def recognises(path: Path) -> bool:
    if not (path.is_dir() and _list_of(path).is_file()):
        return False
    with _list_of(path).open(encoding="utf-8", errors="replace") as lines:
        return "://" in next(lines, "") or len(next(lines, "").split()) == NUMBERS


def read(path: Path) -> PosedScene:
    """The scene of a folder of frames. Raises ValueError: a line of the list that is none, no usable frame."""
    file = _list_of(path)
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines()[1:], start=2):
        words = line.split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if words and len(values) != NUMBERS:
            raise ValueError(f"{file} line {number} is not {NUMBERS} numbers; copy the list again")
        if words:
            rows.append((words[0], np.array(values)))
    return gather(FORM, path, rows, partial(_posed, path))


def _posed(path: Path, row: tuple[str, np.ndarray]) -> PosedImage:
    timestamp, values = row
    images = [path / f"{timestamp}.{ending}" for ending in ENDINGS]
    image = next((file for file in images if file.is_file()), images[0])
    to_camera = values[7:].reshape(3, 4)
    pose = camera_to_world(to_camera[:, :3], to_camera[:, 3])
    try:
        width, height = image_size(image)
        lens = Lens.of(
            (values[1] * width, values[2] * height), (values[3] * width, values[4] * height), (width, height)
        )
    except ValueError as error:
        reason = "broken intrinsics" if image.is_file() else "missing image"
        raise Refusal(reason, f"{image}: {error}") from None
    return posed_image(timestamp, image, lens, pose)
