"""Which patches of two views show the same surface: the overlap matrices of eq. 1, by depth-consistent reprojection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ABSOLUTE_TOLERANCE_M = 0.05
RELATIVE_TOLERANCE = 0.05


@dataclass(frozen=True)
class PosedDepth:
    """What reprojection needs of one view.

    depth       (h, w) z-depth in metres, 0 = no reading.
    intrinsics  (3, 3) of the depth grid, pixel centres at integers.
    pose        (4, 4) camera-to-world.
    """

    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Reprojection:
    """Sampled pixels of view X carried into view Y. All arrays have one entry a valid sampled pixel of X.

    u, v          pixel of X (depth grid).
    u_in, v_in    where its point falls in Y (float, depth grid of Y).
    depth_in      its z-depth in Y's camera, metres; NaN behind it, as u_in and v_in.
    consistent    it falls inside Y, in front of the camera, and Y's own depth there agrees within
                  t = max(0.05 m, 5 % of the depth).
    """

    u: np.ndarray
    v: np.ndarray
    u_in: np.ndarray
    v_in: np.ndarray
    depth_in: np.ndarray
    consistent: np.ndarray


def carry(
    u: np.ndarray, v: np.ndarray, z: np.ndarray, x: PosedDepth, y: PosedDepth
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of X with their depth, in the grid of Y: u, v and z-depth there, NaN behind the camera."""
    k, k_in = x.intrinsics, y.intrinsics
    points = np.stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z])
    to_y = np.linalg.inv(y.pose) @ x.pose
    x_in, y_in, z_in = to_y[:3, :3] @ points + to_y[:3, 3:]
    z_in = np.where(z_in > 0, z_in, np.nan)
    return k_in[0, 0] * x_in / z_in + k_in[0, 2], k_in[1, 1] * y_in / z_in + k_in[1, 2], z_in


def reproject(x: PosedDepth, y: PosedDepth, stride: int = 4) -> Reprojection:
    """Carry every `stride`-th valid pixel of X into Y."""
    height, width = x.depth.shape
    rows, columns = np.arange(stride // 2, height, stride), np.arange(stride // 2, width, stride)
    depth = x.depth[rows[:, None], columns]
    row_index, column_index = np.nonzero(depth > 0)
    z = depth[row_index, column_index].astype(np.float64)
    u, v = columns[column_index], rows[row_index]
    u_in, v_in, z_in = carry(u, v, z, x, y)
    height_y, width_y = y.depth.shape
    inside = (z_in > 1e-6) & (u_in >= -0.5) & (u_in < width_y - 0.5) & (v_in >= -0.5) & (v_in < height_y - 0.5)
    column = np.where(inside, np.rint(u_in), 0).astype(np.int64)
    row = np.where(inside, np.rint(v_in), 0).astype(np.int64)
    seen = y.depth[np.clip(row, 0, height_y - 1), np.clip(column, 0, width_y - 1)]
    tolerance = np.maximum(ABSOLUTE_TOLERANCE_M, RELATIVE_TOLERANCE * z_in)
    consistent = inside & (seen > 0) & (np.abs(seen - z_in) < tolerance)
    return Reprojection(u, v, u_in, v_in, z_in, consistent)


def patch_index(u: np.ndarray, v: np.ndarray, shape: tuple[int, int], n: int) -> np.ndarray:
    """Row-major index of the n x n patch that holds pixel (u, v) of a (h, w) grid."""
    height, width = shape
    column = np.clip(((u + 0.5) * n / width).astype(np.int64), 0, n - 1)
    row = np.clip(((v + 0.5) * n / height).astype(np.int64), 0, n - 1)
    return row * n + column


def directional_overlap(x: PosedDepth, y: PosedDepth, n: int, stride: int = 4) -> np.ndarray:
    """M_X->Y (n*n, n*n): share of patch i's valid pixels whose points fall consistently into patch j of Y."""
    moved = reproject(x, y, stride)
    source = patch_index(moved.u, moved.v, x.depth.shape, n)
    valid = np.bincount(source, minlength=n * n)
    kept = moved.consistent
    target = patch_index(moved.u_in[kept], moved.v_in[kept], y.depth.shape, n)
    counts = np.bincount(source[kept] * n * n + target, minlength=n**4).reshape(n * n, n * n)
    return counts / np.maximum(valid, 1)[:, None]


def overlap_matrices(
    x: PosedDepth, y: PosedDepth, n: int = 4, stride: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M_X->Y, M_Y->X, S) with S = (M_X->Y + M_Y->X^T) / 2 (eq. 1); swapping X and Y transposes S."""
    forward, backward = directional_overlap(x, y, n, stride), directional_overlap(y, x, n, stride)
    return forward, backward, (forward + backward.T) / 2


def view_overlap(x: PosedDepth, y: PosedDepth, stride: int = 4) -> float:
    """Omega in 0 to 1: share of valid pixels that the other view sees consistently, mean of both directions."""
    both = (reproject(x, y, stride), reproject(y, x, stride))
    return float(np.mean([moved.consistent.mean() if moved.u.size else 0.0 for moved in both]))
