"""The change between two views as SPAR's view_change_infer states it: five signed numbers.

SPAR does not publish its rotation convention. Both candidates are here, so that released answers can tell them apart
(`python -m tools.spar_check`); they agree where the first camera is level.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from hatch_ray.geometry.se3 import as_transform, relative

Convention = Literal["camera", "gravity"]
"""camera: yaw and pitch of the second viewing direction in the first camera's own axes. gravity: difference of the
two headings about world up, and difference of the two pitches against the horizon."""

VIEW_CHANGE_WORDS: dict[str, tuple[str, float]] = {
    "move_right": ("right", 1.0),
    "move_left": ("right", -1.0),
    "move_up": ("up", 1.0),
    "move_down": ("up", -1.0),
    "move_forward": ("forward", 1.0),
    "move_backward": ("forward", -1.0),
    "move_back": ("forward", -1.0),
    "rotate_right": ("yaw", 1.0),
    "rotate_left": ("yaw", -1.0),
    "rotate_up": ("pitch", 1.0),
    "rotate_down": ("pitch", -1.0),
}
"""SPAR's words for a view change: (dimension of `view_change`, sign)."""

STRAIGHT = 1e-3
"""Sine of the angle to the vertical below which a viewing direction has no heading."""


def view_change(
    pose_1: np.ndarray, pose_2: np.ndarray, up: np.ndarray | None, convention: Convention = "camera"
) -> dict[str, float]:
    """{"right", "up", "forward"} in metres and {"pitch", "yaw"} in degrees, up and right positive; roll is left out.

    pose_1, pose_2: (4, 4) camera-to-world matrices, OpenCV axes (x right, y down, z forward), metres.
    up: (3,) unit vector of world up; only the gravity convention needs it.
    The translation is the second camera's place in the first camera's axes under both conventions.
    Raises ValueError when a matrix is not a pose, and under the gravity convention when `up` is None or a camera looks
    straight up or down.
    """
    motion = relative(as_transform(pose_1), as_transform(pose_2))
    right, down, forward = motion.translation
    if convention == "camera":
        direction = motion.rotation.apply([0, 0, 1])
        yaw = np.degrees(np.arctan2(direction[0], direction[2]))
        pitch = np.degrees(np.arcsin(np.clip(-direction[1], -1, 1)))
    else:
        pitch, yaw = _against_gravity(np.asarray(pose_1)[:3, 2], np.asarray(pose_2)[:3, 2], up)
    found = {"right": right, "up": -down, "forward": forward, "pitch": pitch, "yaw": yaw}
    return {name: float(value) for name, value in found.items()}


def _against_gravity(first: np.ndarray, second: np.ndarray, up: np.ndarray | None) -> tuple[float, float]:
    """(pitch, yaw) in degrees from one viewing direction to another, against world up."""
    if up is None:
        raise ValueError("the gravity convention needs the direction of world up, which is unknown here")
    pitches, levels = [], []
    for direction in (first, second):
        level = direction - (direction @ up) * up
        if np.linalg.norm(level) < STRAIGHT:
            raise ValueError("a camera looks straight up or down; its heading is not defined")
        pitches.append(np.degrees(np.arctan2(direction @ up, np.linalg.norm(level))))
        levels.append(level)
    yaw = np.degrees(np.arctan2(-np.cross(levels[0], levels[1]) @ up, levels[0] @ levels[1]))
    return float(pitches[1] - pitches[0]), float(yaw)
