"""COLMAP's sparse models with their pictures, as MVImgNet, DL3DV and own captures have them.

The scale is arbitrary and up unknown. Points that a picture sees become landmarks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hatch_ray.data.scenes.colmap_files import PARTS, ImageRecord, Model, part_file, read_model
from hatch_ray.data.scenes.posed import PosedImage, PosedScene, Tracks, gather, posed_image

FORM = "colmap"
LOOKS_LIKE = "cameras, images and points3D (.bin or .txt) in the folder, its sparse/0/ or sparse/; pictures in images/"


def model_folder(path: Path) -> Path | None:
    """Where below a folder its model lies."""
    places = (path, path / "sparse" / "0", path / "sparse")
    return next((place for place in places if any(part_file(place, part) for part in PARTS)), None)


def recognises(path: Path) -> bool:
    return path.is_dir() and model_folder(path) is not None


def read(path: Path) -> PosedScene:
    """The scene of a folder as LOOKS_LIKE says; for a model's own folder the pictures may lie in an images/ above it.

    Raises ValueError: a missing or cut file, a camera model that is not read, no usable frame.
    """
    folder = model_folder(path)
    assert folder is not None
    model = read_model(folder)
    above = (path, *path.resolve().parents[:2])
    images = next((place / "images" for place in above if (place / "images").is_dir()), path / "images")

    def posed(image: ImageRecord) -> PosedImage:
        return posed_image(image.name, images / image.name, model.lenses[image.camera], image.pose())

    return gather(FORM, path, model.images, posed, tracks=tracks_of(model, model.images))


def tracks_of(model: Model, images: list[ImageRecord]) -> Tracks:
    """The model's points, and where each of these images sees them."""
    ids = np.sort(np.fromiter(model.points, np.uint64, len(model.points)))
    seen = []
    for image in images:
        kept = image.keypoints[np.isin(image.keypoints["point"], ids)]
        lens = model.lenses[image.camera]
        seen.append((np.searchsorted(ids, kept["point"]), kept["xy"] / [lens.width, lens.height]))
    stored = [model.points[int(point)] for point in ids]
    return Tracks(np.array([xyz for xyz, _ in stored]).reshape(-1, 3), np.array([error for _, error in stored]), seen)
