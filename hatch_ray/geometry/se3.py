"""Camera poses: checks, gravity, differences. SE(3) itself is `scipy.spatial.transform.RigidTransform`.

Axes are OpenCV's (x right, y down, z forward), poses are camera-to-world, lengths are metres.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation


def as_transform(pose: np.ndarray) -> RigidTransform:
    """A (4, 4) camera-to-world matrix as a RigidTransform.

    Raises ValueError when the matrix is not finite or its upper left block is not a rotation (tolerance 1e-2, which
    text files with few decimals keep).
    """
    pose = np.asarray(pose, dtype=float)
    if pose.shape != (4, 4):
        raise ValueError(f"a pose is a 4x4 matrix, got shape {pose.shape}")
    if not np.isfinite(pose).all():
        raise ValueError("the pose holds NaN or infinity")
    if np.abs(pose[3, :3]).max() > 1e-3 and np.abs(pose[:, 3] - [0, 0, 0, 1]).max() <= 1e-3:
        raise ValueError(
            "the pose's last column is 0 0 0 1, not its last row: it is written in columns (data.convention=transposed)"
        )
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        raise ValueError("the pose's upper left 3x3 block is not a rotation")
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-3:
        raise ValueError("the pose's last row is not 0 0 0 1")
    return RigidTransform.from_components(pose[:3, 3], Rotation.from_matrix(rotation))


def camera_to_world(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The (4, 4) pose of x_camera = rotation @ x_world + translation."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ translation
    return pose


def relative(pose_i: RigidTransform, pose_j: RigidTransform) -> RigidTransform:
    """Pose of camera j in camera i's frame: x_i = T x_j, with T = pose_i^-1 pose_j."""
    return pose_i.inv() * pose_j


def pose_error(a: RigidTransform, b: RigidTransform) -> tuple[float, float]:
    """(d_t, d_r) of eq. 9: distance of the translations in metres, angle between the rotations in degrees."""
    d_t = float(np.linalg.norm(a.translation - b.translation))
    d_r = float(np.degrees((a.rotation * b.rotation.inv()).magnitude()))
    return d_t, d_r


def rotation_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two rotation matrices (3, 3), degrees; by their distance, which is exact near 0."""
    return math.degrees(2 * math.asin(min(1.0, float(np.linalg.norm(a - b)) / math.sqrt(8))))


def pitch_roll(rotation: Rotation, up: np.ndarray) -> tuple[float, float]:
    """(pitch above the horizon, roll with the right side down positive) in degrees of a camera-to-world rotation.

    Raises ValueError when the camera looks straight up or down: its heading, and so its roll, is not defined.
    """
    forward, right = rotation.apply([[0, 0, 1], [1, 0, 0]])
    level_right = np.cross(forward, up)
    norm = np.linalg.norm(level_right)
    if norm < 1e-3:
        raise ValueError("the camera looks straight up or down; its heading is not defined")
    level_right /= norm
    level_down = np.cross(forward, level_right)
    pitch = np.degrees(np.arcsin(np.clip(forward @ up, -1, 1)))
    roll = np.degrees(np.arctan2(right @ level_down, right @ level_right))
    return float(pitch), float(roll)
