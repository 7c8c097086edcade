"""Two views' epipolar geometry: what their poses alone say of a point's place in the other picture."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.scene import Frame


def fundamental(first: Frame, second: Frame) -> np.ndarray:
    """(3, 3), norm 1: x_2^T F x_1 = 0 for pixels (x, y, 1) of the two pictures that show one point."""
    move = np.linalg.inv(second.pose) @ first.pose
    x, y, z = move[:3, 3]
    across = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    found = np.linalg.inv(second.intrinsics).T @ across @ move[:3, :3] @ np.linalg.inv(first.intrinsics)
    return np.asarray(found / max(float(np.linalg.norm(found)), np.finfo(float).tiny))


def line_distances(found: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) pixels of each point (m, 2) of the second picture from the line of each point (n, 2) of the first; inf
    where there is no line.
    """
    lines = np.hstack([first, np.ones((len(first), 1))]) @ found.T
    length = np.hypot(lines[:, 0], lines[:, 1])[:, None]
    away = np.abs(lines @ np.hstack([second, np.ones((len(second), 1))]).T)
    return np.divide(away, length, out=np.full_like(away, np.inf), where=length > 0)
