"""Which views of a scene are asked about together: they overlap, and the camera moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
from scipy.spatial.transform import RigidTransform

from hatch_ray.data.scene import Frame, Scene
from hatch_ray.data.scenes.posed import Landmarks, PosedScene
from hatch_ray.data.visibility import Target, surface_point, visible_object
from hatch_ray.geometry.actions import MAX_METRES, plan_between
from hatch_ray.geometry.overlap import view_overlap
from hatch_ray.geometry.se3 import as_transform, pose_error
from hatch_ray.sample import PairPlan

MIN_BASELINE_M = 0.2
MIN_ROTATION_DEG = 10.0
OVERLAP_SAMPLES_ACROSS = 40
"""Pixels of a row that the overlap estimate reprojects."""
POINTS_A_VIEW = 3
LARGE_RESIDUAL_DEG = 15.0
"""Plans that lose more roll than this are counted in a dataset's summary."""


class Refused(Exception):
    """These views cannot give this question; `reason` is a stable name that the dataset's summary counts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ViewTuple:
    """Views that a question is asked over, in the order in which the model sees them."""

    scene: Scene
    indices: tuple[int, ...]
    frames: tuple[Frame, ...]
    transforms: tuple[RigidTransform, ...]
    overlaps: dict[tuple[int, int], float]
    """Omega of each pair of positions i < j."""
    objects_seen: tuple[tuple[Target, ...], ...]
    """Per view, the objects that it shows well enough; empty tuples when the scene knows no objects."""

    def __len__(self) -> int:
        return len(self.frames)

    def targets(self, rng: np.random.Generator, points_a_view: int = POINTS_A_VIEW) -> list[Target]:
        """Everything that can be marked: the visible objects, or a few fresh surface points of each view."""
        if self.scene.objects:
            return [target for seen in self.objects_seen for target in seen]
        points = [
            surface_point(frame, view, rng) for view, frame in enumerate(self.frames) for _ in range(points_a_view)
        ]
        return [point for point in points if point is not None]


class SceneViews:
    """A scene with what its questions need again and again: overlaps of pairs and visible objects, each computed once.

    min_overlap, max_overlap: range of omega that a pair may have.
    """

    def __init__(self, scene: Scene, min_overlap: float, max_overlap: float) -> None:
        self.scene, self.min_overlap, self.max_overlap = scene, min_overlap, max_overlap
        self.overlap, self._motion = cache(self._overlap_of), cache(self._motion_of)
        self._transform = cache(lambda index: as_transform(scene.frame(index).pose))
        self._seen = cache(self._seen_in)

    def _overlap_of(self, i: int, j: int) -> float:
        """Omega of frames i < j: by depth, else by landmarks that both see."""
        if (landmarks := landmarks_alone(self.scene)) is not None:
            return float(np.mean(landmarks.shared(i, j)))
        x, y = (self.scene.frame(index) for index in (i, j))
        stride = max(1, x.depth.shape[1] // OVERLAP_SAMPLES_ACROSS)
        return view_overlap(x.posed_depth, y.posed_depth, stride)

    def _motion_of(self, i: int, j: int) -> tuple[float, float]:
        """Metres and degrees between two cameras."""
        return pose_error(self._transform(i), self._transform(j))

    def _seen_in(self, index: int) -> list[Target]:
        found = (visible_object(self.scene.frame(index), thing, 0) for thing in self.scene.objects)
        return [target for target in found if target is not None]

    def draw(self, n: int, rng: np.random.Generator) -> ViewTuple:
        """n different frames, in the scene's order (a walk goes forward).

        Raises Refused unless every pair moved (0.2 m or 10 degrees) and not further than an action can say, no pair
        overlaps by more than max_overlap, and each view overlaps with another by min_overlap at least. One frame alone
        is never refused.
        """
        if len(self.scene) < n:
            raise Refused("scene_has_too_few_views")
        indices = tuple(sorted(int(index) for index in rng.choice(len(self.scene), n, replace=False)))
        pairs = list(combinations(range(n), 2))
        motions = [self._motion(indices[i], indices[j]) for i, j in pairs]
        if not all(metres >= MIN_BASELINE_M or degrees >= MIN_ROTATION_DEG for metres, degrees in motions):
            raise Refused("camera_hardly_moved")
        if any(metres > MAX_METRES for metres, _ in motions):
            raise Refused("cameras_too_far_apart")
        overlaps = {(i, j): self.overlap(indices[i], indices[j]) for i, j in pairs}
        if max(overlaps.values(), default=0.0) > self.max_overlap:
            raise Refused("overlap_too_large")
        for view in range(n if n > 1 else 0):
            if max(omega for pair, omega in overlaps.items() if view in pair) < self.min_overlap:
                raise Refused("overlap_too_small")
        frames = tuple(self.scene.frame(index) for index in indices)
        transforms = tuple(self._transform(index) for index in indices)
        seen = tuple(
            tuple(replace(target, view=view) for target in self._seen(index)) for view, index in enumerate(indices)
        )
        return ViewTuple(self.scene, indices, frames, transforms, overlaps, seen)


def landmarks_alone(scene: Scene) -> Landmarks | None:
    """The landmarks of a scene of which no view has depth; None where depth is there, or neither."""
    return scene.landmarks if isinstance(scene, PosedScene) and not scene.has_depth else None


def gold_plans(transforms: Sequence[RigidTransform], up: np.ndarray | None) -> tuple[PairPlan, ...]:
    """The teacher's actions for every pair i < j, gravity-aligned where `up` is known (appendix B.3)."""
    plans = []
    for i, j in combinations(range(len(transforms)), 2):
        atoms, frame, residual = plan_between(transforms[i], transforms[j], up)
        plans.append(PairPlan(i, j, atoms, frame, residual))
    return tuple(plans)
