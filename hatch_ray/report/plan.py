"""A plan of cameras and objects from above, as inline SVG: no script, no outside files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hatch_ray.data.scene import SceneObject
from hatch_ray.data.visibility import box_corners
from hatch_ray.report.pages import render

WEDGE_M = 0.9
"""Length of a camera's viewing wedge."""
MARGIN_M = 0.35
NEAR_OBJECTS_M = 6.0
"""Objects farther than this from every camera are left out, so that the cameras stay legible."""
CAMERA_COLORS = ("#1f5fbf", "#c2571a", "#2b8a57", "#8a4fb0")
OBJECT_COLORS = {
    "red": "#d63b36", "orange": "#ef8a2c", "yellow": "#e3c93a", "green": "#3f9a55", "cyan": "#43bfc7",
    "blue": "#3f5fd0", "purple": "#8c4aa6", "white": "#ffffff", "black": "#3a3a3a", "brown": "#8a5a36",
}  # fmt: skip
POINT_COLORS = {"red": "#ff0000", "green": "#00c000", "blue": "#0000ff", "yellow": "#e8d800"}


@dataclass(frozen=True)
class PlanCamera:
    """A camera to draw.

    pose     (4, 4) camera-to-world.
    label    short text beside it, such as the number of its image.
    fov_deg  horizontal field of view.
    dashed   outline only, for a pose that a model said.
    color    CSS colour; empty picks one by position.
    """

    pose: np.ndarray
    label: str
    fov_deg: float = 60.0
    dashed: bool = False
    color: str = ""


def horizontal_fov(intrinsics: np.ndarray, width: int) -> float:
    """Degrees seen by an image of this width."""
    left, right = (intrinsics[0, 2] + 0.5) / intrinsics[0, 0], (width - 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    return float(np.degrees(np.arctan(left) + np.arctan(right)))


def _level_axes(pose: np.ndarray, up: np.ndarray | None) -> np.ndarray:
    """(2, 3): right and ahead of a camera (4, 4), level, ahead being up on the page."""
    up = -pose[:3, 1] if up is None else np.asarray(up, dtype=float) / np.linalg.norm(up)
    ahead = pose[:3, 2] - (pose[:3, 2] @ up) * up
    if np.linalg.norm(ahead) < 0.1:
        # It looks straight down or up: the upper edge of its image stands for ahead.
        ahead = -pose[:3, 1] + (pose[:3, 1] @ up) * up
    ahead /= np.linalg.norm(ahead)
    return np.stack([np.cross(ahead, up), ahead])


def plan_svg(
    cameras: Sequence[PlanCamera],
    up: np.ndarray | None,
    objects: Sequence[SceneObject] = (),
    points: Sequence[tuple[np.ndarray, str]] = (),
    size: int = 300,
) -> str:
    """An SVG of `size` x `size` pixels. The first camera looks up the page; a faint grid has lines every metre.

    points: marked places, (3,) in the world, each with its mark's colour.
    up: world up; None draws in the plane of the first camera's own right and forward axes.
    """
    assert cameras, "a plan needs at least one camera"
    first = np.asarray(cameras[0].pose, dtype=float)
    axes = _level_axes(first, up)

    def flat(place: np.ndarray) -> np.ndarray:
        """World positions (..., 3) as (..., 2): right and ahead of the first camera, metres."""
        return (np.asarray(place) - first[:3, 3]) @ axes.T

    wedges = [_wedge(flat(camera.pose[:3, 3]), camera.pose[:3, 2] @ axes.T, camera.fov_deg) for camera in cameras]
    places = np.stack([wedge[0] for wedge in wedges])
    near = [thing for thing in objects if np.linalg.norm(places - flat(thing.center), axis=1).min() <= NEAR_OBJECTS_M]
    outlines = [flat(box_corners(thing)[[0, 4, 6, 2]]) for thing in near]
    dots = [flat(place) for place, _ in points]
    everything = np.concatenate([*wedges, *outlines, *(dot[None] for dot in dots)])
    low, high = everything.min(axis=0) - MARGIN_M, everything.max(axis=0) + MARGIN_M
    middle, extent = (low + high) / 2, float((high - low).max())
    scale = size / extent

    def pixel(place: np.ndarray) -> tuple[float, float]:
        x, y = (place - middle) * scale
        return round(size / 2 + float(x), 1), round(size / 2 - float(y), 1)

    def path(corners: np.ndarray) -> str:
        return " ".join(f"{x},{y}" for x, y in map(pixel, corners))

    things = []
    for thing, outline in zip(near, outlines, strict=True):
        x, y = pixel(flat(thing.center))
        if any(abs(x - dot_x) < 16 and abs(y - dot_y) < 9 for dot_x, dot_y in map(pixel, dots)):
            y += 13  # beside the mark, not under it
        color = OBJECT_COLORS.get(thing.name.split(" ")[0], "#b9b4a8")
        things.append((thing.name, path(outline), color, x, y))
    colors = [camera.color or CAMERA_COLORS[index % len(CAMERA_COLORS)] for index, camera in enumerate(cameras)]
    return render(
        "plan.svg", size=size, things=things, metre=round(scale, 1), grid=_grid(middle, extent, pixel),
        cameras=[(camera, color, path(wedge), *pixel(wedge[0]))
                 for camera, color, wedge in zip(cameras, colors, wedges, strict=True)],
        dots=[(POINT_COLORS.get(color, "#000000"), *pixel(dot))
              for (_, color), dot in zip(points, dots, strict=True)],
    )  # fmt: skip


def _wedge(place: np.ndarray, ahead: np.ndarray, fov_deg: float) -> np.ndarray:
    """(3, 2): a camera's place and the two ends of its field of view, level."""
    length = np.linalg.norm(ahead)
    ahead = ahead / length if length > 1e-6 else np.zeros(2)
    half = np.radians(fov_deg / 2)
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (half, -half)]
    return np.stack([place, *(place + WEDGE_M / np.cos(half) * turn @ ahead for turn in turns)])


def _grid(middle: np.ndarray, extent: float, pixel: Callable[[np.ndarray], tuple[float, float]]) -> list[list[float]]:
    """Pixels of upright and of level lines every metre (every 5 m on a large plan)."""
    step = 1.0 if extent <= 15 else 5.0
    starts = np.ceil((middle - extent / 2) / step) * step
    values = [np.arange(start, centre + extent / 2, step) for start, centre in zip(starts, middle, strict=True)]
    return [[pixel(np.array([value, value]))[axis] for value in values[axis]] for axis in (0, 1)]
