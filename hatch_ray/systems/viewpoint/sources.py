"""Where pairs of photos come from: rendered objects, rooms, posed sequences; each scene tells its clear pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from hatch_ray.data.build import room_seeds
from hatch_ray.data.pairs import Refused, SceneViews
from hatch_ray.data.rgbd import read_sequences
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.data.scene import Frame, Scene
from hatch_ray.data.scenes.forms import find_scenes, read_scene
from hatch_ray.data.scenes.posed import PosedScene
from hatch_ray.data.spar.layout import heldout
from hatch_ray.data.store import Split
from hatch_ray.systems.viewpoint.config import ViewpointData
from hatch_ray.systems.viewpoint.motion import Motion, clear_free, clear_orbit
from hatch_ray.systems.viewpoint.objects import ObjectOrbit
from hatch_ray.systems.viewpoint.surroundings import Surroundings, surroundings


class Pairs(Protocol):
    """Pairs of one scene's photos. count: of the photos; metric: its lengths are metres."""

    id: str
    count: int
    up: np.ndarray
    metric: bool

    def motion(self, first: int, second: int) -> Motion:
        """From one photo to another; raises Refused where they give no question, in either order."""

    def frame(self, index: int) -> Frame: ...


class OrbitPairs:
    """Photos around one object."""

    def __init__(self, name: str, scene: ObjectOrbit | PosedScene, around: Surroundings, metric: bool) -> None:
        self.id, self.count, self.frame, self.up, self.metric = name, len(scene), scene.frame, around.up, metric
        self._poses, self._around = scene.poses, around

    def motion(self, first: int, second: int) -> Motion:
        return clear_orbit(self._poses[first], self._poses[second], self._around.centre, self.up)


class FreePairs:
    """Views of one place that overlap."""

    def __init__(self, scene: Scene, min_overlap: float, max_overlap: float) -> None:
        if scene.up is None:
            raise Refused("up_unknown")
        self.id, self.count, self.frame, self.up, self.metric = scene.id, len(scene), scene.frame, scene.up, True
        self._views = SceneViews(scene, min_overlap, max_overlap)
        self._sight = cache(lambda index: _sight(scene.frame(index)))

    def motion(self, first: int, second: int) -> Motion:
        poses = self.frame(first).pose, self.frame(second).pose
        found = clear_free(*poses, self.up, (self._sight(first), self._sight(second)))
        overlap = self._views.overlap(min(first, second), max(first, second))
        if not self._views.min_overlap <= overlap <= self._views.max_overlap:
            raise Refused("overlap_too_small" if overlap < self._views.min_overlap else "overlap_too_large")
        return found


def _sight(frame: Frame) -> float:
    """How far a camera sees: the median of its depth."""
    known = frame.depth[frame.depth > 0]
    if not known.size:
        raise Refused("no_depth")
    return float(np.median(known))


def sources(data: ViewpointData, seed: int, split: Split) -> Sequence[Callable[[], Pairs]]:
    """What makes the pairs of each scene of a split; making one may raise Refused.

    Raises ValueError where there is no scene, and as the readers of scenes.
    """
    size = data.rooms
    if data.kind == "rooms":
        seeds = room_seeds(size, seed, split)
        options = RoomOptions(
            size.image_size, size.image_size, size.fov_deg, size.views_per_scene, size.compass, walk=False
        )
        if data.mode == "orbit":
            return [partial(_object, number, split, options) for number in seeds]
        return [partial(_room, number, options, data) for number in seeds]
    if data.mode == "free":
        scenes = read_sequences(data).split(split)
        return [partial(FreePairs, scene, data.min_overlap, data.max_overlap) for scene in scenes]
    if data.root is None or not data.root.is_dir():
        raise ValueError(f"the root {data.root} is not a folder; name that of your posed sequences")
    folders = list(find_scenes(data.root))
    names = {folder: str(folder.relative_to(data.root)) for folder in folders}
    chosen = [f for f in folders if heldout(names[f], seed, data.heldout_fraction) == (split == "heldout")]
    if not chosen:
        raise ValueError(
            f"none of the {len(folders)} posed sequences below {data.root} is {split} by heldout_fraction="
            f"{data.heldout_fraction:g}; sequences are split whole, so give more of them or change it"
        )
    return [partial(_sequence, folder, names[folder]) for folder in chosen]


def _object(number: int, split: Split, options: RoomOptions) -> OrbitPairs:
    scene = ObjectOrbit(number, split, options)
    return OrbitPairs(scene.id, scene, surroundings(scene.poses, centre=scene.centre, up=scene.up), True)


def _room(number: int, options: RoomOptions, data: ViewpointData) -> FreePairs:
    return FreePairs(Room(number, options), data.min_overlap, data.max_overlap)


def _sequence(folder: Path, name: str) -> OrbitPairs:
    scene = read_scene(folder)
    if len(scene) < 2:
        raise Refused("one_photo")
    around = surroundings(scene.poses, scene.landmarks, up=scene.up)
    return OrbitPairs(name.replace("/", "-"), scene, around, metric=False)
