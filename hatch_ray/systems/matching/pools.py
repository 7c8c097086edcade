"""Pools of matches between two posed views, from depth or from landmarks, and how much the views overlap.

Wide-baseline matching, arXiv 2606.03577, section 3.2 and supplement 7.1. The paper gives no thresholds: those here are
ours, as are the checks on depth's edges and on the way back, which keep hidden points out of a pool. Overlaps of depth
and of landmarks are not comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from hatch_ray.data.numbered import circle_radius
from hatch_ray.data.scene import Frame
from hatch_ray.data.scenes.posed import Landmarks
from hatch_ray.geometry.overlap import carry

DEPTH_TOLERANCE = 0.05
"""Of |z projected - z seen| / z projected."""
COLOR_TOLERANCE = 0.15
"""Of the mean difference of red, green and blue, of full range."""
EDGE = 0.04
"""Relative range of depth in 3 x 3 pixels above which a pixel lies at an edge."""
RETURN = 2 / 640
"""In widths of the picture: a match that is carried back by the other view's depth ends this near to where it began."""
CELL = 8
"""Pixels: a reduced pool has one match a cell of either picture."""
SPACING = 0.05
"""In widths of the picture: two marks of a question need about this."""
CLUSTER = 0.25
"""Matches nearer than this share of the spacing, in both pictures at once, are one."""
LEAST, MOST = 10, 50
"""Matches of a pool."""


@dataclass(frozen=True)
class Pool:
    """matches (N, 4): x1 y1 x2 y2, pixels of the pictures. omega: share of the first view that the second sees, and of
    the second that the first sees; of all pixels (the paper's), or of a view's landmarks. omega_valid: of those with
    depth.
    """

    matches: np.ndarray
    omega: tuple[float, float]
    omega_valid: tuple[float, float]


def depth_pool(first: Frame, second: Frame, stride: int = 1) -> Pool:
    """Every `stride`-th pixel of the first depth grid that the second view sees, by depth, colour and the way back."""
    matches, omega, valid = _carried(first, second, stride)
    _, omega_back, valid_back = _carried(second, first, stride)
    return Pool(matches, (omega, omega_back), (valid, valid_back))


def landmark_pool(landmarks: Landmarks, first: int, second: int) -> Pool:
    """The landmarks that both views see. The paper's overlap is the larger of the two (|both| / min)."""
    (points, pixels), (points_2, pixels_2) = (_once(*landmarks.seen_by(view)) for view in (first, second))
    _, here, there = np.intersect1d(points, points_2, assume_unique=True, return_indices=True)
    omega = landmarks.shared(first, second)
    return Pool(np.hstack([pixels[here], pixels_2[there]]), omega, omega)


def _once(points: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A view may have two keypoints of one landmark: the first counts."""
    unique, index = np.unique(points, return_index=True)
    return unique, pixels[index]


def spread(matches: np.ndarray, width: int, spacing: float = SPACING, cluster: float = CLUSTER) -> np.ndarray:
    """Indices of at most MOST of the matches (N, 4), far from each other in both pictures (of this width); none where
    fewer than LEAST are left.

    One a cell; then one a cluster (single linkage at `cluster` times the spacing in x1 y1 x2 y2, which is DBSCAN with
    one sample), the nearest to its middle; then always the one that is farthest from those taken, by the mean of both
    pictures' distances, while that is at least the spacing.
    """
    kept = one_a_cluster(matches, one_a_cell(matches), cluster * spacing * width)
    if len(kept) < LEAST:
        return np.zeros(0, int)
    points = matches[kept]
    taken = [int(np.argmax(np.linalg.norm(points - points.mean(axis=0), axis=1)))]
    away = np.full(len(points), np.inf)
    while len(taken) < MOST:
        step = points - points[taken[-1]]
        away = np.minimum(away, (np.hypot(step[:, 0], step[:, 1]) + np.hypot(step[:, 2], step[:, 3])) / 2)
        farthest = int(np.argmax(away))
        if not away[farthest] or away[farthest] < spacing * width:
            break
        taken.append(farthest)
    return kept[np.sort(taken)] if len(taken) >= LEAST else np.zeros(0, int)


@dataclass(frozen=True)
class Thinned:
    """What questions are drawn from. matches (N, 4) as in `Pool`, one a cell, a ring about each inside its picture;
    spread: indices of LEAST to MOST of them, or of none (`spread`). omega as in `Pool`.
    """

    matches: np.ndarray
    spread: np.ndarray
    omega: tuple[float, float]
    omega_valid: tuple[float, float]


def thinned(pool: Pool, first: Frame, second: Frame) -> Thinned:
    """A pool of two views, thinned."""
    matches = pool.matches[one_a_cell(pool.matches)]
    whole = np.rint(matches)
    matches = matches[ring_inside(whole[:, :2], first) & ring_inside(whole[:, 2:], second)]
    return Thinned(matches, spread(np.rint(matches), first.rgb.shape[1]), pool.omega, pool.omega_valid)


def ring_inside(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """(n,) whether a mark's ring about each pixel lies inside the picture."""
    radius = circle_radius(frame.rgb.shape[1])
    sides = np.array([frame.rgb.shape[1], frame.rgb.shape[0]])
    return np.asarray(((pixels >= radius) & (pixels < sides - radius)).all(axis=1))


def one_a_cell(matches: np.ndarray) -> np.ndarray:
    """Indices: the nearest to the middle of its cell in the first picture; of those, one a cell of the second."""
    cells = np.floor(matches / CELL).astype(int)
    off = np.abs(matches[:, :2] - (cells[:, :2] + 0.5) * CELL).max(axis=1)
    order = np.argsort(off, kind="stable")
    for half in (cells[:, :2], cells[:, 2:]):
        _, index = np.unique(half[order], axis=0, return_index=True)
        order = order[np.sort(index)]
    return np.sort(order)


def one_a_cluster(matches: np.ndarray, kept: np.ndarray, reach: float) -> np.ndarray:
    """Of the indices `kept`: one a cluster, the nearest to its mean. Two matches nearer than `reach` are of one."""
    points = matches[kept]
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray") if len(points) else np.zeros((0, 2), int)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    count, label = connected_components(links, directed=False)
    size = np.maximum(1, np.bincount(label, minlength=count))
    middle = np.stack([np.bincount(label, points[:, axis], count) / size for axis in range(4)], axis=1)
    order = np.argsort(np.linalg.norm(points - middle[label], axis=1), kind="stable")
    _, index = np.unique(label[order], return_index=True)
    return np.sort(kept[order[index]])


def _carried(first: Frame, second: Frame, stride: int) -> tuple[np.ndarray, float, float]:
    """Matches, and the shares of all pixels and of those with depth that the other view sees by depth and colour."""
    height, width = first.depth.shape
    v, u = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride].reshape(2, -1)
    z = first.depth[v, u].astype(float)
    u, v, z = u[z > 0], v[z > 0], z[z > 0]
    u_2, v_2, z_2 = carry(u, v, z, first.posed_depth, second.posed_depth)
    seen_z, steady_2 = depth_at(second, u_2, v_2)
    with np.errstate(invalid="ignore"):
        seen = (seen_z > 0) & (np.abs(z_2 - seen_z) < DEPTH_TOLERANCE * z_2)
    here, there = picture_pixels(u, v, first), picture_pixels(u_2, v_2, second)
    seen[seen] = np.abs(_color_at(first, here[seen]) - _color_at(second, there[seen])).mean(axis=1) < COLOR_TOLERANCE
    u_back, v_back, _ = carry(u_2[seen], v_2[seen], seen_z[seen], second.posed_depth, first.posed_depth)
    kept = seen & depth_at(first, u, v)[1] & steady_2
    kept[seen] &= np.hypot(u_back - u[seen], v_back - v[seen]) <= RETURN * width
    total = len(range(stride // 2, height, stride)) * len(range(stride // 2, width, stride))
    return np.hstack([here, there])[kept], float(seen.sum() / total), float(seen.sum() / max(1, len(u)))


def depth_at(frame: Frame, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth between pixels, 0 where it is not known, and whether the pixel lies on a steady surface.

    Inverse depth is what is linear between the pixels of a plane.
    """
    depth = frame.depth.astype(float)
    height, width = depth.shape
    low, high = minimum_filter(depth, 3), maximum_filter(depth, 3)
    steady_grid = (low > 0) & (high - low < EDGE * high)
    inside = (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
    at = np.where(inside, v, 0).clip(0, height - 1), np.where(inside, u, 0).clip(0, width - 1)
    nearest = np.rint(at[0]).astype(int), np.rint(at[1]).astype(int)
    steady = inside & steady_grid[nearest]
    inverse = map_coordinates(np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0), at, order=1)
    known = inside & (depth[nearest] > 0)
    between = np.divide(1, inverse, out=np.zeros_like(inverse), where=steady)
    return np.where(steady, between, np.where(known, depth[nearest], 0)), steady


def picture_pixels(u: np.ndarray, v: np.ndarray, frame: Frame) -> np.ndarray:
    """(n, 2) pixels of the colour picture for those of the depth grid."""
    k, k_color = frame.depth_intrinsics, frame.intrinsics
    scale = np.diag(k_color)[:2] / np.diag(k)[:2]
    return (np.stack([u, v], axis=-1) - k[:2, 2]) * scale + k_color[:2, 2]


def _color_at(frame: Frame, pixels: np.ndarray) -> np.ndarray:
    """(n, 3) colour between pixels, 0 to 1."""
    at = [pixels[:, 1], pixels[:, 0]]
    bands = [map_coordinates(frame.rgb[..., band] / 255, at, order=1, mode="nearest") for band in range(3)]
    return np.stack(bands, axis=-1)
