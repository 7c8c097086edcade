"""CO3D version 2 (and 1): CATEGORY/SEQUENCE/images, depths, depth_masks beside CATEGORY/frame_annotations.jgz.

As facebookresearch/co3d and PyTorch3D define it: row vectors, X_camera = X R + T, axes x left and y up; intrinsics in
normalised coordinates. Depth is the bit pattern of a float16, times scale_adjustment, where the mask is not 0. The
scale is arbitrary, up unknown; the point cloud names no pixels, so there are no landmarks.
"""

from __future__ import annotations

import gzip
import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scenes.posed import PosedImage, PosedScene, gather, posed_image
from hatch_ray.geometry.lens import Lens
from hatch_ray.geometry.se3 import camera_to_world

FORM = "co3d"
LOOKS_LIKE = "a sequence's folder with images/, below a category's with frame_annotations.jgz (CO3D)"
ANNOTATIONS = "frame_annotations.jgz"
FORMATS = ("ndc_isotropic", "ndc_norm_image_bounds")
FLIP = np.array([-1.0, -1.0, 1.0])
"""PyTorch3D's camera axes to OpenCV's."""


def recognises(path: Path) -> bool:
    return (path / "images").is_dir() and (path.resolve().parent / ANNOTATIONS).is_file()


def read(path: Path) -> PosedScene:
    """The scene of a sequence's folder. Raises ValueError: annotations that are none or do not name the sequence,
    intrinsics of another format, no usable frame.
    """
    path = path.resolve()
    file = path.parent / ANNOTATIONS
    frames = _annotations(file, file.stat().st_mtime_ns).get(path.name)
    if not frames:
        raise ValueError(f"{file} names no frame of the sequence {path.name}; copy the category's own annotations")
    try:
        return gather(FORM, path, sorted(frames, key=lambda frame: int(frame["frame_number"])), partial(_posed, path))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: a frame of {path.name} lacks {error}; copy it again") from None


@lru_cache(maxsize=2)
def _annotations(file: Path, _changed: int) -> dict[str, list[dict[str, Any]]]:
    """Frames by sequence; kept, since a category's sequences are read one after the other."""
    sequences: dict[str, list[dict[str, Any]]] = {}
    try:
        for frame in json.loads(gzip.decompress(file.read_bytes())):
            sequences.setdefault(frame["sequence_name"], []).append(frame)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no gzipped list of frames ({error}); copy it again") from None
    return sequences


def _posed(path: Path, frame: dict[str, Any]) -> PosedImage:
    root = path.parents[1]
    name = f"{path.parent / ANNOTATIONS}: frame {frame['frame_number']} of {path.name}"
    viewpoint = frame.get("viewpoint")
    if viewpoint is None:
        raise Refusal("missing pose", f"{name} has no viewpoint")
    rotation, translation = np.array(viewpoint["R"], dtype=float), np.array(viewpoint["T"], dtype=float)
    pose = camera_to_world((rotation * FLIP).T, translation * FLIP)
    depth = frame.get("depth")
    load = None if depth is None else partial(_depth, root, depth)
    return posed_image(frame["image"]["path"], root / frame["image"]["path"], _lens(viewpoint, frame, name), pose, load)


def _lens(viewpoint: dict[str, Any], frame: dict[str, Any], name: str) -> Lens:
    height, width = frame["image"]["size"]
    form = viewpoint.get("intrinsics_format") or "ndc_norm_image_bounds"
    if form not in FORMATS:
        raise ValueError(f"{name} has intrinsics_format {form}; read are {', '.join(FORMATS)}")
    unit = np.full(2, min(width, height) / 2) if form == "ndc_isotropic" else np.array([width, height]) / 2
    focal = viewpoint["focal_length"] * unit
    center = np.array([width, height]) / 2 - viewpoint["principal_point"] * unit
    try:
        return Lens.of((focal[0], focal[1]), (center[0], center[1]), (width, height))
    except ValueError as error:
        raise Refusal("broken intrinsics", f"{name} {error}") from None


def _depth(root: Path, depth: dict[str, Any]) -> np.ndarray:
    """(h, w) float32; 0 where it is not finite or masked out."""
    stored = _grid(root / depth["path"]).view(np.float16).astype(np.float32)
    values = np.where(np.isfinite(stored) & (stored > 0), stored, 0) * np.float32(depth["scale_adjustment"])
    if depth.get("mask_path"):
        values = np.where(_grid(root / depth["mask_path"]) > 0, values, 0)
    return values


def _grid(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.ascontiguousarray(np.asarray(image), dtype=np.uint16)
    except OSError as error:
        raise ValueError(f"{file} is no depth of CO3D ({error}); copy it again") from None
