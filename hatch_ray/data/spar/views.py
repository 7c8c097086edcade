"""Depth, poses and intrinsics of SPAR-7M-RGBD: where they are, and in which units."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from hatch_ray.data.camera_files import read_intrinsics, read_pose
from hatch_ray.data.geometry_check import StoredScene, evenly
from hatch_ray.data.images import MILLIMETRES, image_size, load_depth
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.rgbd_frames import MIN_VALID_DEPTH
from hatch_ray.data.spar.layout import BESIDE_COLOR, COLOR_FOLDERS, beside
from hatch_ray.geometry.agreement import PLAUSIBLE_MEDIAN_M, StoredView
from hatch_ray.geometry.convention import scale_intrinsics

UNITS_UNKNOWN = "structured3d"
"""The source whose units SPAR does not state."""
FARTHEST_CAMERA_M = 100.0
"""No camera indoors stands this far from the origin in metres; in millimetres every camera does, by its height."""


def has_rgbd(root: Path, sources: list[str]) -> bool:
    """Whether any scene of the sources has poses (SPAR-7M-RGBD), or none has (SPAR-7M)."""
    folders = [root / source / "images" for source in sources]
    return any(place.is_dir() for images in folders for form in ("*/pose", "*/*/pose") for place in images.glob(form))


def depth_in_metres(depth: np.ndarray, source: str, name: str) -> tuple[np.ndarray, bool]:
    """(h, w) depth, read as millimetres, in metres; and whether it was in metres already (units are checked by the
    median, where the source's are unknown). Raises Refusal.
    """
    valid = depth[depth > 0]
    if valid.size < MIN_VALID_DEPTH * depth.size:
        raise Refusal("no_valid_depth", f"{name} has readings in {valid.size} of {depth.size} pixels")
    median = float(np.median(valid))
    low, high = PLAUSIBLE_MEDIAN_M
    if low <= median <= high:
        return depth, False
    if source == UNITS_UNKNOWN and low <= median * MILLIMETRES <= high:
        return depth * np.float32(MILLIMETRES), True
    raise Refusal("implausible_depth_units", f"{name} has a median depth of {median:.3g} m, read as millimetres")


def pose_in_metres(pose: np.ndarray, source: str) -> np.ndarray:
    """The pose itself, or with its place divided by 1000 where the source's units are unknown and it is millimetres."""
    if source == UNITS_UNKNOWN and np.abs(pose[:3, 3]).max() > FARTHEST_CAMERA_M:
        pose = pose.copy()
        pose[:3, 3] /= MILLIMETRES
    return pose


def stored_intrinsics(folder: Path, color: tuple[int, int], depth: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) matrices of a scene's colour grid and depth grid, as stored. Raises Refusal.

    Without `intrinsic_depth.txt` depth is taken as registered to colour: the colour matrix, scaled.
    """
    color_k, depth_k = (_matrix(folder / "intrinsic" / f"intrinsic_{grid}.txt") for grid in ("color", "depth"))
    if color_k is None:
        raise Refusal("missing_intrinsics", f"{folder / 'intrinsic' / 'intrinsic_color.txt'} does not exist")
    if depth_k is None:
        depth_k = scale_intrinsics(color_k, depth[0] / color[0], depth[1] / color[1])
    return color_k, depth_k


@lru_cache(maxsize=4096)
def _matrix(path: Path) -> np.ndarray | None:
    """(3, 3) of an intrinsics file; None when it is absent. Raises Refusal."""
    if not path.is_file():
        return None
    try:
        return read_intrinsics(path)
    except ValueError as error:
        raise Refusal("bad_intrinsics", str(error)) from None


def link_file(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, target)


def spar_scenes(root: Path, sources: Sequence[str]) -> list[StoredScene]:
    """Some scenes with poses below the sources' images/, one entry a colour folder. root: the folder of the sources."""
    places = [
        (root / source / "images", place, source)
        for source in sources
        for folder in COLOR_FOLDERS
        for place in sorted(path for depth in ("*", "*/*") for path in root.glob(f"{source}/images/{depth}/{folder}"))
        if (place.parent / BESIDE_COLOR[folder, "pose"]).parent.is_dir()
    ]
    return [_scene(*place) for place in evenly(places)]


def _order(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdecimal() else (-1, path.stem)


def _scene(images: Path, place: Path, source: str) -> StoredScene:
    names = [path.relative_to(images).as_posix() for path in sorted(place.iterdir(), key=_order)]

    def load(index: int) -> StoredView:
        name = names[index]
        width, height = image_size(images / name)
        depth, _ = depth_in_metres(load_depth(images / beside(name, "depth")), source, name)
        _, depth_k = stored_intrinsics(place.parent, (width, height), depth.shape[::-1])
        pose = pose_in_metres(read_pose(images / beside(name, "pose")), source)
        return StoredView(name, depth, depth_k, pose, width)

    scene = place.parent.relative_to(images).as_posix()
    return StoredScene(
        f"{source}/{scene}", len(names), lambda index: read_pose(images / beside(names[index], "pose")), load
    )
