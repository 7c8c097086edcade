"""What a view shows well enough to ask about: objects by their instance mask, or single surface points.

Limits are those of SPAR-like generation: an object counts when it covers 2 % of the image or 30 x 30 pixels, when at
most half of it is hidden and at most 30 % of it lies outside the image. Pixel limits are for images 640 wide and scale
with the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from hatch_ray.data.scene import Frame, SceneObject

REFERENCE_WIDTH = 640
MIN_AREA = 0.02
MIN_SIDE_PX = 30
MIN_MARK_GAP_PX = 40
MIN_UNHIDDEN = 0.5
MAX_CLIPPED = 0.3
HIDDEN_BEHIND_M = 0.1
"""A point this far behind another object's surface is hidden by it."""

PATCH_PX = 15
"""A surface point stands for a square of this side (at width 640) whose depths must agree."""
PATCH_RELATIVE_SPREAD = 0.04
POINT_DEPTH_M = (0.4, 8.0)
POINT_BORDER = 0.08
"""Share of width and height at each side where no point is put."""
POINT_TRIES = 20


@dataclass(frozen=True)
class Target:
    """A thing that a question can mark in one view.

    view       index into the question's views.
    center     (3,) world position that all golds use: an object's box centre, or the surface point itself.
    pixel      (2,) where its point mark goes, in 0-1000.
    box        (x1, y1, x2, y2) of its visible pixels in 0-1000; None for a surface point.
    object_id  the scene's object, or -1 for a surface point.
    name       "green chair", or "" for a surface point.
    """

    view: int
    center: np.ndarray
    pixel: tuple[int, int]
    box: tuple[int, int, int, int] | None
    object_id: int
    name: str


def to_camera(pose: np.ndarray, point: np.ndarray) -> np.ndarray:
    """World point(s) (..., 3) in the camera's frame."""
    return (point - pose[:3, 3]) @ pose[:3, :3]


def project(intrinsics: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Camera-frame point(s) (..., 3) with z > 0 to pixels (..., 2)."""
    x, y, z = point[..., 0], point[..., 1], point[..., 2]
    u = intrinsics[0, 0] * x / z + intrinsics[0, 2]
    v = intrinsics[1, 1] * y / z + intrinsics[1, 2]
    return np.stack([u, v], axis=-1)


def back_project(frame: Frame, u: int, v: int) -> np.ndarray:
    """(3,) world point of a pixel of the depth grid."""
    z = float(frame.depth[v, u])
    k = frame.depth_intrinsics
    camera = np.array([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z])
    return frame.pose[:3, :3] @ camera + frame.pose[:3, 3]


def to_thousand(pixel: np.ndarray, frame: Frame) -> np.ndarray:
    """Colour-grid pixels (..., 2), centres at integers, in SPAR's 0-1000 coordinates."""
    height, width = frame.rgb.shape[:2]
    return (pixel + 0.5) * 1000 / np.array([width, height])


def _depth_pixel_to_thousand(frame: Frame, pixel: np.ndarray) -> np.ndarray:
    """Both grids share one optical centre, so the map from depth pixels to colour pixels does not need the depth."""
    kd, kc = frame.depth_intrinsics, frame.intrinsics
    ray = (pixel - kd[:2, 2]) / np.array([kd[0, 0], kd[1, 1]])
    return to_thousand(ray * np.array([kc[0, 0], kc[1, 1]]) + kc[:2, 2], frame)


def box_corners(thing: SceneObject, steps: int = 2) -> np.ndarray:
    """(steps^3, 3) world points of a regular grid over the object's box; steps=2 gives the corners."""
    unit = np.linspace(-0.5, 0.5, steps)
    local = np.array(list(product(unit, unit, unit))) * thing.size
    c, s = np.cos(thing.yaw), np.sin(thing.yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return local @ turn.T + thing.center


def visible_object(frame: Frame, thing: SceneObject, view: int) -> Target | None:
    """The object as a target of this view, or None when the view does not show it well enough."""
    assert frame.instances is not None
    rows, columns = np.nonzero(frame.instances == thing.id)
    height, width = frame.instances.shape
    if rows.size == 0:
        return None
    side = MIN_SIDE_PX * width / REFERENCE_WIDTH
    wide, high = columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
    if rows.size < MIN_AREA * width * height and min(wide, high) < side:
        return None
    corners = to_camera(frame.pose, box_corners(thing))
    if (corners[:, 2] < 0.05).any() or _unhidden(frame, thing) < MIN_UNHIDDEN:
        return None
    if _clipped(project(frame.depth_intrinsics, corners), width, height) > MAX_CLIPPED:
        return None
    middle = project(frame.depth_intrinsics, to_camera(frame.pose, thing.center))
    nearest = np.argmin((columns - middle[0]) ** 2 + (rows - middle[1]) ** 2)
    x, y = np.rint(_depth_pixel_to_thousand(frame, np.array([columns[nearest], rows[nearest]]))).astype(int)
    low = _depth_pixel_to_thousand(frame, np.array([columns.min(), rows.min()]) - 0.5)
    high_corner = _depth_pixel_to_thousand(frame, np.array([columns.max(), rows.max()]) + 0.5)
    x1, y1, x2, y2 = np.clip(np.rint([*low, *high_corner]), 0, 1000).astype(int)
    return Target(view, thing.center, (int(x), int(y)), (int(x1), int(y1), int(x2), int(y2)), thing.id, thing.name)


def _clipped(pixels: np.ndarray, width: int, height: int) -> float:
    """Share of the projected box's bounding rectangle that lies outside the image."""
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    inside = np.minimum(high, [width - 0.5, height - 0.5]) - np.maximum(low, -0.5)
    if (inside <= 0).any():
        return 1.0
    return 1.0 - float(np.prod(inside) / np.prod(high - low))


def _unhidden(frame: Frame, thing: SceneObject) -> float:
    """Share of a grid of the box's points in the image that no other surface hides."""
    assert frame.instances is not None
    points = to_camera(frame.pose, box_corners(thing, steps=4))
    pixels = np.rint(project(frame.depth_intrinsics, points)).astype(int)
    height, width = frame.depth.shape
    inside = ((pixels >= 0) & (pixels < [width, height])).all(axis=1)
    if not inside.any():
        return 0.0
    u, v = pixels[inside].T
    seen, owner = frame.depth[v, u], frame.instances[v, u]
    hidden = (owner != thing.id) & (seen > 0) & (seen < points[inside, 2] - HIDDEN_BEHIND_M)
    return float(1 - hidden.mean())


def surface_point(frame: Frame, view: int, rng: np.random.Generator) -> Target | None:
    """A random surface point: every depth in the square around it is valid and within 4 % of the middle's.

    None when no such point is found in a few tries.
    """
    height, width = frame.depth.shape
    half = max(1, round(PATCH_PX * width / REFERENCE_WIDTH / 2))
    border_x, border_y = max(half, int(POINT_BORDER * width)), max(half, int(POINT_BORDER * height))
    for _ in range(POINT_TRIES):
        u = int(rng.integers(border_x, width - border_x))
        v = int(rng.integers(border_y, height - border_y))
        patch = frame.depth[v - half : v + half + 1, u - half : u + half + 1]
        middle = float(frame.depth[v, u])
        if not POINT_DEPTH_M[0] <= middle <= POINT_DEPTH_M[1]:
            continue
        if (patch <= 0).any() or np.abs(patch - middle).max() > PATCH_RELATIVE_SPREAD * middle:
            continue
        x, y = np.rint(_depth_pixel_to_thousand(frame, np.array([u, v]))).astype(int)
        if 0 <= x <= 1000 and 0 <= y <= 1000:
            return Target(view, back_project(frame, u, v), (int(x), int(y)), None, -1, "")
    return None
