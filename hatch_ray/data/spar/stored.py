"""The scenes of a SPAR-7M-RGBD tree for the check of their geometry: frames as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hatch_ray.data.camera_files import read_pose
from hatch_ray.data.geometry_check import StoredScene, evenly
from hatch_ray.data.images import image_size, load_depth
from hatch_ray.data.spar.layout import BESIDE_COLOR, COLOR_FOLDERS, beside
from hatch_ray.data.spar.views import depth_in_metres, pose_in_metres, stored_intrinsics
from hatch_ray.geometry.agreement import StoredView


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
