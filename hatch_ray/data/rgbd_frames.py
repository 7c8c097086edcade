"""One posed RGB-D frame: its files loaded, checked, turned upright, and cut to the size asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hatch_ray.data.camera_files import check_grid, load_pose
from hatch_ray.data.images import load_depth, load_stored, upright
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scene import Frame, SceneObject
from hatch_ray.geometry.agreement import PLAUSIBLE_MEDIAN_M
from hatch_ray.geometry.convention import AS_OURS, Convention, scale_intrinsics

MIN_VALID_DEPTH = 0.01
CACHE_MEGABYTES = 512
QUARTER_TURNS = {6: -1, 8: 1}
"""EXIF orientations of a camera held upright: quarter turns, counter-clockwise, that make the stored pixels upright."""


@dataclass(frozen=True)
class FrameFiles:
    """The three files of one frame; they may be missing on disk."""

    name: str
    color: Path
    depth: Path
    pose: Path


@dataclass(frozen=True)
class Recording:
    """One sequence as found on disk, frames in order of time, nothing loaded.

    color_intrinsics, depth_intrinsics: (3, 3), as stored; the colour one is None where it follows from the depth one.
    color_zoom: the colour camera's focal length over the depth camera's, where it follows.
    """

    name: str
    frames: tuple[FrameFiles, ...]
    depth_intrinsics: np.ndarray
    color_intrinsics: np.ndarray | None
    up: np.ndarray | None
    convention: Convention = AS_OURS
    """How the stored numbers are read."""
    color_zoom: float = 1.0

    def color_k(self, depth_k: np.ndarray, depth_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """(3, 3) of a photo of this (width, height), from the matrix of its depth grid as it is read."""
        if self.color_intrinsics is not None:
            return self.convention.intrinsics(self.color_intrinsics, *size, depth_size[:1])
        k = scale_intrinsics(depth_k, size[0] / depth_size[0], size[1] / depth_size[1])
        return k * np.array([[self.color_zoom, 1, 1], [1, self.color_zoom, 1], [1, 1, 1]])


class RgbdScene:
    """Part of a recording as a Scene. Frames load when asked for; recently used ones are kept.

    image_size: 0 keeps the native grids; otherwise each grid is cut to its centre square and resized (colour smoothly,
    depth to the nearest reading), with the intrinsics following.
    """

    objects: tuple[SceneObject, ...] = ()

    def __init__(self, id: str, recording: Recording, frames: list[FrameFiles], image_size: int) -> None:
        self.id, self.up = id, recording.up
        self._recording, self._frames, self._size = recording, list(frames), image_size
        self._cache: dict[int, Frame] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> Frame:
        """Frame `index` in order of time. Raises Refusal when it cannot be used."""
        frame = self._cache.pop(index, None) or load_frame(self._frames[index], self._recording, self._size)
        self._cache[index] = frame
        while len(self._cache) > max(2, CACHE_MEGABYTES * 2**20 // (frame.rgb.nbytes + frame.depth.nbytes)):
            del self._cache[next(iter(self._cache))]
        return frame

    def drop_bad_frames(self) -> list[Refusal]:
        """Load every frame once, keep those that can be used, return why the others cannot."""
        refused: list[Refusal] = []
        place = 0
        while place < len(self):
            try:
                self.frame(place)
                place += 1
            except Refusal as refusal:
                refused.append(refusal)
                del self._frames[place]
        return refused


def load_frame(files: FrameFiles, recording: Recording, image_size: int = 0) -> Frame:
    """Load and check one frame. A photo that EXIF turns is turned, and with it depth, intrinsics and pose. Depth is
    laid on the photo where the two cameras differ.

    Raises Refusal naming the file: missing or unreadable file, broken pose, no depth, implausible units,
    intrinsics of another image size, colour and depth that do not lie alike.
    """
    convention = recording.convention
    pose = load_pose(files.pose, convention)
    for path, what in ((files.depth, "depth"), (files.color, "colour")):
        if not path.is_file():
            raise Refusal(f"missing {what}", f"{path} does not exist")
    try:
        depth = load_depth(files.depth) * np.float32(convention.depth)
    except ValueError as error:
        raise Refusal("unreadable depth", str(error)) from None
    valid = depth[depth > 0]
    if valid.size < MIN_VALID_DEPTH * depth.size:
        raise Refusal("no valid depth", f"{files.depth} has readings in {valid.size} of {depth.size} pixels")
    median = float(np.median(valid))
    if not PLAUSIBLE_MEDIAN_M[0] <= median <= PLAUSIBLE_MEDIAN_M[1]:
        raise Refusal(
            "implausible depth units", f"{files.depth} has a median depth of {median:.3g} m; depth must be millimetres"
        )
    try:
        image, orientation = load_stored(files.color, str(files.color))
    except ValueError as error:
        raise Refusal("unreadable colour", str(error)) from None
    height, width = depth.shape
    depth_k = convention.intrinsics(recording.depth_intrinsics, width, height, (image.width,))
    check_grid(depth_k, width, height, f"depth image {files.depth}")
    image, turns = _lie_alike(image, orientation, depth, files)
    color_k = recording.color_k(depth_k, (width, height), image.size)
    check_grid(color_k, *image.size, f"colour image {files.color}")
    if turns:
        color_k, depth_k = turn_intrinsics(color_k, turns, *image.size), turn_intrinsics(depth_k, turns, width, height)
        image, depth, pose = upright(image, orientation), np.rot90(depth, turns), turn_pose(pose, turns)
    depth, depth_k = on_the_photo(depth, depth_k, color_k, image.size)
    if image_size:
        image, color_k, depth, depth_k = _square(image, color_k, depth, depth_k, image_size)
    return Frame(files.name, np.asarray(image), np.ascontiguousarray(depth), color_k, depth_k, pose)


def _lie_alike(image: Image.Image, orientation: int, depth: np.ndarray, files: FrameFiles) -> tuple[Image.Image, int]:
    """The colour image on depth's side, and the quarter turns that both still need to be upright.

    As stored both lie alike: they are turned together. The photo is turned and depth is not: it is made upright, and
    both are. Raises Refusal where neither is plain.
    """
    if image.width == image.height or depth.shape[0] == depth.shape[1]:
        if orientation == 1:
            return image, 0
        raise Refusal("colour stored turned", _turned(files, orientation, "a square does not tell"))
    across = depth.shape[1] > depth.shape[0]
    if orientation != 1 and orientation not in QUARTER_TURNS:
        raise Refusal("colour stored turned", _turned(files, orientation, "it is not a quarter turn"))
    if (image.width > image.height) == across:
        return image, QUARTER_TURNS.get(orientation, 0)
    if orientation == 1:
        raise Refusal(
            "colour turned against depth",
            f"{files.color} is {image.width} x {image.height}, its depth {depth.shape[1]} x {depth.shape[0]}; turn one "
            "of them, with its intrinsics",
        )
    return upright(image, orientation), 0


def _turned(files: FrameFiles, orientation: int, why: str) -> str:
    return (
        f"{files.color} has EXIF orientation {orientation}, and {why} whether depth is turned as well; save it as "
        "depth lies, without the tag"
    )


def turn_intrinsics(k: np.ndarray, turns: int, width: int, height: int) -> np.ndarray:
    """(3, 3) of a grid of this size after `turns` (1 or -1) quarter turns counter-clockwise."""
    turned = k.astype(float).copy()
    turned[0, 0], turned[1, 1] = k[1, 1], k[0, 0]
    turned[:2, 2] = (k[1, 2], width - 1 - k[0, 2]) if turns == 1 else (height - 1 - k[1, 2], k[0, 2])
    return turned


def turn_pose(pose: np.ndarray, turns: int) -> np.ndarray:
    """(4, 4) of the camera whose picture was turned so: it rolls about its optical axis."""
    turned = pose.copy()
    turned[:3, 0], turned[:3, 1] = (pose[:3, 1], -pose[:3, 0]) if turns == 1 else (-pose[:3, 1], pose[:3, 0])
    return turned


def on_the_photo(
    depth: np.ndarray, depth_k: np.ndarray, color_k: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (h, w) as the photo's camera has it, on as many pixels, with their intrinsics: a patch of the photo is then
    the same patch of the depth grid. 0 where the depth camera does not look. size: (width, height) of the photo.

    Both cameras are taken to stand in one place and look one way: each pixel has the reading of the nearest ray, whose
    z-depth is the same. Grids that agree within half a pixel stay as they are.
    """
    height, width = depth.shape
    k = scale_intrinsics(color_k, width / size[0], height / size[1])
    (u, keep_u), (v, keep_v) = (
        _nearest_rays(count, k[axis], depth_k[axis], axis) for axis, count in enumerate((width, height))
    )
    if (u == np.arange(width)).all() and (v == np.arange(height)).all():
        return depth, depth_k
    return np.where(keep_v[:, None] & keep_u, depth[np.ix_(v, u)], np.float32(0)), k


def _nearest_rays(count: int, k: np.ndarray, depth_k: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `count` pixels along an axis: the depth pixel whose ray is nearest, and whether there is one."""
    place = np.rint((np.arange(count) - k[2]) / k[axis] * depth_k[axis] + depth_k[2]).astype(int)
    return place.clip(0, count - 1), (place >= 0) & (place < count)


def _square(
    image: Image.Image, color_k: np.ndarray, depth: np.ndarray, depth_k: np.ndarray, size: int
) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray]:
    """Both grids' centre squares with `size` pixels a side, and their intrinsics."""
    left, top, side = _middle(*image.size)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    color_k = scale_intrinsics(color_k - [[0, 0, left], [0, 0, top], [0, 0, 0]], size / side)
    left, top, side = _middle(depth.shape[1], depth.shape[0])
    pick = ((np.arange(size) + 0.5) * side / size).astype(int)
    depth_k = scale_intrinsics(depth_k - [[0, 0, left], [0, 0, top], [0, 0, 0]], size / side)
    return image, color_k, depth[top + pick[:, None], left + pick], depth_k


def _middle(width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of a grid's centre square."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side
