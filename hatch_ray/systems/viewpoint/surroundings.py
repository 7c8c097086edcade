"""What cameras went around, and which way is up: given, or estimated from poses and landmarks; unclear is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hatch_ray.data.pairs import Refused
from hatch_ray.data.scenes.posed import Landmarks

MIN_TRACK = 3
MAX_ERROR_PX = 2.0
KEPT_PERCENT = (5.0, 95.0)
"""Landmarks outside this range of an axis do not count for the centre."""
MAX_CONDITION = 1e3
"""Of the matrix whose inverse gives the meeting point of the optical axes."""
MAX_BEHIND = 0.05
"""Share of the cameras that may have the centre behind them."""
ROUND = 2.0
"""Two smallest singular values of the camera places within this factor: they lie in no plane that tells up."""
STRAIGHT = 0.02
"""The middle one is below this share of the largest: they stand in a line, and any plane through it is as good."""
MAX_UP_DEG = 35.0
"""The two estimates of up may differ by so much."""


@dataclass(frozen=True)
class Surroundings:
    """centre (3,) of what the cameras look at, and up (3,), a unit vector; both in the world of the poses."""

    centre: np.ndarray
    up: np.ndarray


def surroundings(
    poses: np.ndarray, landmarks: Landmarks | None = None, centre: np.ndarray | None = None,
    up: np.ndarray | None = None,
) -> Surroundings:  # fmt: skip
    """What is not given is estimated. poses: (V, 4, 4) camera-to-world, OpenCV axes, any scale.

    Raises Refused: "centre_unclear", "up_unclear".
    """
    centre = estimated_centre(poses, landmarks) if centre is None else np.asarray(centre, dtype=float)
    up = estimated_up(poses) if up is None else np.asarray(up, dtype=float)
    return Surroundings(centre, up / np.linalg.norm(up))


def estimated_centre(poses: np.ndarray, landmarks: Landmarks | None = None) -> np.ndarray:
    """(3,): median of the sure landmarks, where there are any; else where the optical axes meet, by least squares.

    Raises Refused "centre_unclear": the axes meet nowhere, or the centre lies behind too many cameras.
    """
    places, ahead = poses[:, :3, 3], poses[:, :3, 2]
    centre = None if landmarks is None else _middle(landmarks)
    if centre is None:
        across = np.eye(3) - ahead[:, :, None] * ahead[:, None]
        total = across.sum(axis=0)
        if np.linalg.cond(total) > MAX_CONDITION:
            raise Refused("centre_unclear")
        centre = np.linalg.solve(total, (across @ places[..., None]).sum(axis=0)[:, 0])
    behind = np.einsum("ij,ij->i", centre - places, ahead) <= 0
    if behind.mean() > MAX_BEHIND:
        raise Refused("centre_unclear")
    return centre


def _middle(landmarks: Landmarks) -> np.ndarray | None:
    """The median of landmarks that three pictures see, with a small error where one is told; None where none is."""
    sure = (landmarks.track_length >= MIN_TRACK) & ~(landmarks.error > MAX_ERROR_PX)
    points = landmarks.points[sure]
    if not len(points):
        return None
    low, high = np.percentile(points, KEPT_PERCENT, axis=0)
    return np.asarray(np.median(points[((points >= low) & (points <= high)).all(axis=1)], axis=0))


def estimated_up(poses: np.ndarray) -> np.ndarray:
    """(3,) unit: the normal of the plane through the cameras, on the side of the pictures' tops; where they lie in no
    clear plane, the mean direction of those tops.

    Raises Refused "up_unclear": the two differ by over 35 degrees, or tops point everywhere.
    """
    tops = -poses[:, :3, 1]
    mean = tops.mean(axis=0)
    if np.linalg.norm(mean) < np.cos(np.radians(MAX_UP_DEG)) / 2:
        raise Refused("up_unclear")
    mean /= np.linalg.norm(mean)
    places = poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0)
    _, sizes, axes = np.linalg.svd(places, full_matrices=len(places) < 3)
    if len(sizes) < 3 or sizes[1] <= max(ROUND * sizes[2], STRAIGHT * sizes[0]):
        return np.asarray(mean)
    normal = axes[2] * (1.0 if axes[2] @ mean > 0 else -1.0)
    if normal @ mean < np.cos(np.radians(MAX_UP_DEG)):
        raise Refused("up_unclear")
    return np.asarray(normal)
