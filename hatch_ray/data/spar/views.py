"""The photos of SPAR rows: files checked once, with depth, intrinsics and pose where the tree is SPAR-7M-RGBD."""

from __future__ import annotations

import os
import shutil
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from hatch_ray.data.camera_files import check_grid, load_pose, read_intrinsics
from hatch_ray.data.images import MILLIMETRES, load_depth, load_image, save_depth
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.rgbd_frames import MIN_VALID_DEPTH
from hatch_ray.data.spar.layout import beside
from hatch_ray.data.unique import UniqueNames
from hatch_ray.geometry.agreement import PLAUSIBLE_MEDIAN_M
from hatch_ray.geometry.convention import AS_OURS, Convention, scale_intrinsics
from hatch_ray.sample import View

UNITS_UNKNOWN = "structured3d"
"""The source whose units SPAR does not state."""
FARTHEST_CAMERA_M = 100.0
"""No camera indoors stands this far from the origin in metres; in millimetres every camera does, by its height."""


def has_rgbd(root: Path, sources: list[str]) -> bool:
    """Whether any scene of the sources has poses (SPAR-7M-RGBD), or none has (SPAR-7M)."""
    folders = [root / source / "images" for source in sources]
    return any(place.is_dir() for images in folders for form in ("*/pose", "*/*/pose") for place in images.glob(form))


class SceneViews:
    """Views of a tree's images, each checked and linked into a dataset's folder once.

    root: the folder of the sources. dataset: the folder that gets `images/` and `depth/`. rgbd: poses are expected.
    convention: how poses, depth and intrinsics are read.
    """

    def __init__(self, root: Path, dataset: Path, rgbd: bool, convention: Convention = AS_OURS) -> None:
        self.root, self.dataset, self.rgbd, self.convention = root, dataset, rgbd, convention
        self._scenes, self._files = UniqueNames(), UniqueNames()
        self._made: dict[tuple[str, str], View | Refusal] = {}

    def scene_name(self, source: str, scene: str) -> str:
        """The scene's name in the dataset, which no other scene of any source has."""
        flat = scene.replace("/", "_")
        return self._scenes.of((source, scene), flat, f"{source}-{flat}")

    def view(self, source: str, image: str, depth: str | None) -> View:
        """The view of an image path below SOURCE/images, with paths relative to the dataset.

        depth: the record's depth path; None takes the published place beside the image. Raises Refusal.
        """
        key = (source, image)
        if key not in self._made:
            try:
                self._made[key] = self._make(source, image, depth)
            except Refusal as refusal:
                self._made[key] = refusal
        if isinstance(made := self._made[key], Refusal):
            raise Refusal(made.reason, made.detail)
        return made

    def _make(self, source: str, image: str, depth: str | None) -> View:
        images = self.root / source / "images"
        path = images / image
        if not path.is_file():
            raise Refusal("missing_image", f"{path} does not exist")
        try:
            size = load_image(path).size
        except ValueError as error:
            raise Refusal("unreadable_image", str(error)) from None
        relative = PurePosixPath(image)
        scene = self.scene_name(source, "/".join(relative.parts[:-2]))
        prefix = "video-" if relative.parts[-2] == "video_color" else ""
        stem = self._files.of((source, image), f"{scene}/{prefix}{relative.stem}").rpartition("/")[2]
        target = Path("images") / scene / f"{stem}{relative.suffix}"
        if not self.rgbd:
            link_file(path, self.dataset / target)
            return View(target)
        pose = load_pose(images / beside(image, "pose"), self.convention)
        depth_path = images / (depth or beside(image, "depth"))
        if not depth_path.is_file():
            raise Refusal("missing_depth", f"{depth_path} does not exist")
        try:
            stored = load_depth(depth_path) * np.float32(self.convention.depth)
        except ValueError as error:
            raise Refusal("unreadable_depth", str(error)) from None
        metres, rescaled = depth_in_metres(stored, source, str(depth_path))
        folder, depth_size = images.joinpath(*relative.parts[:-2]), (metres.shape[1], metres.shape[0])
        color_k, depth_k = stored_intrinsics(folder, size, depth_size)
        color_k = self.convention.intrinsics(color_k, *size, (depth_size[0],))
        depth_k = self.convention.intrinsics(depth_k, *depth_size, (size[0],))
        check_grid(color_k, *size, f"colour of {folder}")
        check_grid(depth_k, *depth_size, f"depth of {folder}")
        depth_target = Path("depth") / scene / f"{stem}.png"
        link_file(path, self.dataset / target)
        if rescaled or self.convention.depth != 1:
            save_depth(self.dataset / depth_target, metres)
        else:
            link_file(depth_path, self.dataset / depth_target)
        return View(target, depth_target, color_k, depth_k, pose_in_metres(pose, source))


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
