"""transforms.json as nerfstudio, instant-ngp and DL3DV-10K write it: lens and camera-to-world in OpenGL's axes.

    w h fl_x fl_y cx cy k1 k2 p1 p2 camera_model, or camera_angle_x (NeRF's own), each for all or in a frame
    frames [{file_path, transform_matrix 4x4 or 3x4, depth_file_path (16-bit PNG, millimetres), colmap_im_id}]
    applied_transform 3x4: took the world of colmap/sparse/0, if that is there, to this one; its points are landmarks
The middle of the top left pixel is (0.5, 0.5). Pictures may be smaller than the lens says and lie in images_2, _4 or _8
instead of images (DL3DV). Scale and up are not known.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.data.images import image_size, load_depth
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scenes.colmap import tracks_of
from hatch_ray.data.scenes.colmap_files import ImageRecord, read_model
from hatch_ray.data.scenes.posed import PosedImage, PosedScene, Tracks, gather, posed_image
from hatch_ray.geometry.convention import OPENGL
from hatch_ray.geometry.lens import Lens

FORM = "transforms"
LOOKS_LIKE = "transforms.json (nerfstudio, instant-ngp, DL3DV)"
MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
SMALLER = ("images", "images_2", "images_4", "images_8")


def recognises(path: Path) -> bool:
    return (path / "transforms.json").is_file()


def read(path: Path) -> PosedScene:
    """The scene of a folder. Raises ValueError: no JSON of this form, no intrinsics, a lens that is not read, no usable
    frame.
    """
    file = path / "transforms.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        frames = stored["frames"]
        poses = [_pose(frame["transform_matrix"]) for frame in frames]
        files = [_picture(path, frame["file_path"]) for frame in frames]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is no transforms.json ({type(error).__name__}: {error}); it needs frames with file_path and a "
            "transform_matrix of 4x4 numbers"
        ) from None

    def posed(number: int) -> PosedImage:
        values, image = {**stored, **frames[number]}, files[number]
        depth = values.get("depth_file_path")
        load = None if depth is None else partial(load_depth, path / depth)
        return posed_image(frames[number]["file_path"], image, _lens(values, image, file), poses[number], load)

    return gather(FORM, path, range(len(frames)), posed, tracks=_tracks(stored, frames, path))


def _pose(matrix: Any) -> np.ndarray:
    rows = np.array(matrix, dtype=float)
    if rows.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"a transform_matrix has shape {rows.shape}")
    return (rows if len(rows) == 4 else np.vstack([rows, [0, 0, 0, 1]])) * np.diag(OPENGL)


def _picture(path: Path, name: str) -> Path:
    """Where it lies: as named, in a folder of smaller pictures, or with the .png that NeRF's own files leave out."""
    places = [path / name, path / f"{name}.png"]
    if Path(name).parent.name == "images":
        places += [(path / name).parents[1] / folder / Path(name).name for folder in SMALLER]
    return next((place for place in places if place.is_file()), path / name)


def _lens(values: dict[str, Any], image: Path, file: Path) -> Lens:
    """Raises ValueError naming the file, Refusal where only the picture can tell its size and is missing."""
    model = values.get("camera_model", "OPENCV")
    extra = [name for name in ("k3", "k4") if values.get(name)]
    if model not in MODELS or extra or values.get("is_fisheye"):
        what = f"distortion {', '.join(extra)}" if extra and model in MODELS else f"camera_model {model}"
        raise ValueError(
            f"{file}: {what} is not read; undistort the images to a pinhole camera ({', '.join(MODELS)} are)"
        )
    if "fl_x" not in values and "camera_angle_x" not in values:
        raise ValueError(
            f"{file} has no intrinsics for {values['file_path']}; give fl_x (and fl_y, cx, cy, w, h) in it"
        )
    try:
        size = (int(values["w"]), int(values["h"])) if {"w", "h"} <= values.keys() else image_size(image)
    except ValueError as error:
        raise Refusal("missing image" if not image.is_file() else "unreadable colour", str(error)) from None
    try:
        across = values["fl_x"] if "fl_x" in values else size[0] / 2 / math.tan(values["camera_angle_x"] / 2)
        center = (values.get("cx", size[0] / 2), values.get("cy", size[1] / 2))
        k1, k2, p1, p2 = (float(values.get(name, 0)) for name in ("k1", "k2", "p1", "p2"))
        return Lens.of((across, values.get("fl_y", across)), center, size, (k1, k2, p1, p2))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: the lens of {values['file_path']} {error}") from None


def _tracks(stored: dict[str, Any], frames: list[dict[str, Any]], path: Path) -> Tracks | None:
    """Points of the COLMAP model beside the file, in its world; None unless the file says which and where they are."""
    folder = path / "colmap" / "sparse" / "0"
    if not (folder.is_dir() and "applied_transform" in stored and all("colmap_im_id" in frame for frame in frames)):
        return None
    model, applied = read_model(folder), np.array(stored["applied_transform"], dtype=float)
    images = {image.id: image for image in model.images}
    if unknown := {frame["colmap_im_id"] for frame in frames} - images.keys():
        raise ValueError(f"{path / 'transforms.json'} names COLMAP's image {min(unknown)}, which {folder} lacks")
    records: list[ImageRecord] = [images[frame["colmap_im_id"]] for frame in frames]
    tracks = tracks_of(model, records)
    return Tracks(tracks.points @ applied[:3, :3].T + applied[:3, 3], tracks.error, tracks.seen)
