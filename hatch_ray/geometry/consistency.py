"""Do the plans of several pairs agree? A figure that needs no gold: go from i to j to k, and compare with i to k.

Of three views i < j < k the model writes three plans, each from the images alone. Where they tell of one place,
composing (i, j) and (j, k) ends at the camera that (i, k) ends at. The figure is how far the two ends are apart:
metres between their places and degrees between their rotations (`pose_error`, eq. 9), both in the frame of camera i.

It is 0 for the relative poses of any real cameras, and it does not depend on the world frame; turning the axes of all
cameras alike changes nothing either. What it cannot see: an error that all three plans share (everything twice as far,
a model that always writes "stay"), and whether the plans are right. A large figure shows a guess; a small one is no
proof. Plans are composed in the camera's own frame (gravity is not known), so even true plans differ a little where
cameras are pitched or rolled, and by what plans are rounded to (0.1 m, a degree).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hatch_ray.geometry.actions import Motion
from hatch_ray.geometry.se3 import rotation_angle


@dataclass(frozen=True)
class Triple:
    """Three views i < j < k, and how far composing (i, j) and (j, k) ends from (i, k): metres and degrees."""

    views: tuple[int, int, int]
    metres: float
    degrees: float


def triples(motions: Mapping[tuple[int, int], Motion]) -> list[Triple]:
    """Every triple whose three pairs are there, in order of the views; none below three views.

    motions: (rotation (3, 3), translation (3,)) of camera j in the frame of camera i, by pair (i, j), i < j.
    """
    views = sorted({view for pair in motions for view in pair})
    found = []
    for i, j, k in combinations(views, 3):
        if (i, j) in motions and (j, k) in motions and (i, k) in motions:
            metres, degrees = _apart(motions[i, j], motions[j, k], motions[i, k])
            found.append(Triple((i, j, k), metres, degrees))
    return found


def _apart(first: Motion, second: Motion, direct: Motion) -> tuple[float, float]:
    rotation, place = first[0] @ second[0], first[1] + first[0] @ second[1]
    return float(np.linalg.norm(place - direct[1])), rotation_angle(rotation, direct[0])
