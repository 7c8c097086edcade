"""What is known of the geometry of two views, by depth or by landmarks: their matches, and what proves a question."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hatch_ray.data.pairs import Refused
from hatch_ray.data.scene import Frame, Scene
from hatch_ray.data.scenes.posed import Landmarks
from hatch_ray.data.visibility import project, to_camera
from hatch_ray.systems.matching.places import FAR, Places, place_of, places
from hatch_ray.systems.matching.pools import Pool, depth_pool, landmark_pool
from hatch_ray.systems.matching.sized import SizedScene

ACROSS = 160
"""Depth pixels of a row that are matched."""
OFF = 2.0
"""Pixels by which a landmark may project beside the keypoint that sees it; else it marks nothing."""


class Ground(Protocol):
    """Two views, and the truth about them."""

    first: Frame
    second: Frame
    by: str
    """depth or landmarks: overlaps of one cannot be compared with those of the other."""

    def pool(self) -> Pool:
        """All matches of the two."""

    def free(self, guard: float) -> tuple[Places, Places]:
        """Points of the first view, and of the second, that may be marked although they have no partner."""

    def place_of(self, pixels: np.ndarray, way: int) -> np.ndarray:
        """(n, 2) where whole pixels of the first view (way 0; of the second: 1) lie in the other; NaN: not known."""


class DepthGround:
    """By depth."""

    by = "depth"

    def __init__(self, first: Frame, second: Frame) -> None:
        self.first, self.second = first, second

    def pool(self) -> Pool:
        return depth_pool(self.first, self.second, max(1, self.first.depth.shape[1] // ACROSS))

    def free(self, guard: float) -> tuple[Places, Places]:
        return places(self.first, self.second, guard), places(self.second, self.first, guard)

    def place_of(self, pixels: np.ndarray, way: int) -> np.ndarray:
        views = (self.first, self.second) if way == 0 else (self.second, self.first)
        return place_of(pixels, *views)


class LandmarkGround:
    """By landmarks: each is known in space, so that its place in the other view is known, seen there or not."""

    by = "landmarks"

    def __init__(self, first: Frame, second: Frame, landmarks: Landmarks, i: int, j: int) -> None:
        self.first, self.second = first, second
        self._landmarks, self._views = landmarks, (i, j)
        both = np.intersect1d(landmarks.seen_by(i)[0], landmarks.seen_by(j)[0])
        ways = ((i, first, second), (j, second, first))
        self._known = tuple(self._seen(view, own, other, both) for view, own, other in ways)

    def _seen(self, view: int, own: Frame, other: Frame, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2) whole pixels, each once, of landmarks that a view sees, and their places in the other."""
        point, pixels = self._landmarks.seen_by(view)
        points = self._landmarks.points[point]
        with np.errstate(invalid="ignore"):
            fits = np.hypot(*(_project(points, own) - pixels).T) < OFF
        shared = np.isin(point, both)
        order = np.argsort(~shared, kind="stable")  # of two on one pixel, the one that both views see
        order = order[fits[order]]
        whole, index = np.unique(np.rint(pixels[order]), axis=0, return_index=True)
        return whole, np.nan_to_num(_project(points[order][index], other), nan=FAR)

    def pool(self) -> Pool:
        return landmark_pool(self._landmarks, *self._views)

    def free(self, guard: float) -> tuple[Places, Places]:
        found = (self._free(*known, frame) for known, frame in zip(self._known, (self.second, self.first), strict=True))
        first, second = found
        return first, second

    def _free(self, pixels: np.ndarray, there: np.ndarray, other: Frame) -> Places:
        sides = np.array([other.rgb.shape[1], other.rgb.shape[0]])
        inside = (there > -0.5) & (there < sides - 0.5)
        return Places(pixels, there, np.asarray(inside.all(axis=1)))

    def place_of(self, pixels: np.ndarray, way: int) -> np.ndarray:
        whole, there = self._known[way]
        place = {(int(x), int(y)): at for (x, y), at in zip(whole, there, strict=True)}
        unknown = np.full(2, np.nan)
        return np.array([place.get((int(x), int(y)), unknown) for x, y in pixels]).reshape(-1, 2)


def ground_of(scene: Scene, i: int, j: int) -> Ground:
    """Of two views of a scene: by depth where it has any, else by landmarks.

    Raises Refused: the pictures are of two sizes, there is neither; a ValueError where a picture cannot be read.
    """
    by_landmarks = isinstance(scene, SizedScene) and not scene.has_depth
    landmarks = scene.landmarks if isinstance(scene, SizedScene) else None
    if by_landmarks and landmarks is None:
        raise Refused("neither_depth_nor_landmarks")
    first, second = scene.frame(i), scene.frame(j)
    if first.rgb.shape != second.rgb.shape:
        raise Refused("pictures_of_two_sizes")
    if by_landmarks and landmarks is not None:
        return LandmarkGround(first, second, landmarks, i, j)
    return DepthGround(first, second)


def _project(points: np.ndarray, frame: Frame) -> np.ndarray:
    """(n, 2) pixels of world points; NaN behind the camera."""
    seen = to_camera(frame.pose, points)
    return project(frame.intrinsics, np.where(seen[:, 2:] > 0, seen, np.nan))
