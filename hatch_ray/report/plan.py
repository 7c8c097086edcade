"""A plan of cameras and objects from above, as inline SVG: no script, no outside files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hatch_ray.data.scene import SceneObject

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


@dataclass(frozen=True)
class PlanPoint:
    """A marked place: (3,) world position and its mark's colour name."""

    place: np.ndarray
    color: str


def horizontal_fov(intrinsics: np.ndarray, width: int) -> float:
    """Degrees seen by an image of this width."""
    left, right = (intrinsics[0, 2] + 0.5) / intrinsics[0, 0], (width - 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    return float(np.degrees(np.arctan(left) + np.arctan(right)))


class _Ground:
    """Level coordinates of a plan: origin at the first camera, its viewing direction upwards on the page."""

    def __init__(self, pose: np.ndarray, up: np.ndarray | None) -> None:
        self.up = -pose[:3, 1] if up is None else np.asarray(up, dtype=float) / np.linalg.norm(up)
        ahead = pose[:3, 2] - (pose[:3, 2] @ self.up) * self.up
        if np.linalg.norm(ahead) < 0.1:
            # It looks straight down or up: the upper edge of its image stands for ahead.
            ahead = -pose[:3, 1] + (pose[:3, 1] @ self.up) * self.up
        ahead /= np.linalg.norm(ahead)
        self.axes = np.stack([np.cross(ahead, self.up), ahead])
        self.origin = pose[:3, 3]

    def flat(self, place: np.ndarray) -> np.ndarray:
        """World positions (..., 3) as (..., 2): right and ahead of the first camera, metres."""
        return (np.asarray(place) - self.origin) @ self.axes.T

    def direction(self, vector: np.ndarray) -> np.ndarray:
        return np.asarray(vector) @ self.axes.T


def plan_svg(
    cameras: Sequence[PlanCamera],
    up: np.ndarray | None,
    objects: Sequence[SceneObject] = (),
    points: Sequence[PlanPoint] = (),
    size: int = 300,
) -> str:
    """An SVG of `size` x `size` pixels. The first camera looks up the page; a faint grid has lines every metre.

    up: world up; None draws in the plane of the first camera's own right and forward axes.
    """
    assert cameras, "a plan needs at least one camera"
    ground = _Ground(np.asarray(cameras[0].pose, dtype=float), up)
    wedges = [_wedge(camera, ground) for camera in cameras]
    places = np.stack([wedge[0] for wedge in wedges])
    near = [thing for thing in objects if _distance(ground.flat(thing.center), places) <= NEAR_OBJECTS_M]
    outlines = [ground.flat(_footprint(thing)) for thing in near]
    dots = [ground.flat(point.place) for point in points]
    everything = np.concatenate([*wedges, *outlines, *(dot[None] for dot in dots)])
    low, high = everything.min(axis=0) - MARGIN_M, everything.max(axis=0) + MARGIN_M
    middle, extent = (low + high) / 2, float((high - low).max())
    scale = size / extent

    def pixel(place: np.ndarray) -> tuple[float, float]:
        x, y = (place - middle) * scale
        return round(size / 2 + float(x), 1), round(size / 2 - float(y), 1)

    def path(corners: np.ndarray) -> str:
        return " ".join(f"{x},{y}" for x, y in map(pixel, corners))

    parts = [
        f'<svg class="plan" width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">',
        f'<rect width="{size}" height="{size}" rx="6" fill="#fbfaf7"/>',
        _grid(middle, extent, size, pixel),
    ]
    for thing, outline in zip(near, outlines, strict=True):
        color = OBJECT_COLORS.get(thing.name.split(" ")[0], "#b9b4a8")
        x, y = pixel(ground.flat(thing.center))
        if any(abs(x - dot_x) < 16 and abs(y - dot_y) < 9 for dot_x, dot_y in map(pixel, dots)):
            y += 13  # beside the mark, not under it
        parts.append(
            f'<polygon points="{path(outline)}" fill="{color}" fill-opacity="0.38" stroke="#8d877a" '
            f'stroke-width="0.7"><title>{escape(thing.name)}</title></polygon>'
            f'<text x="{x}" y="{y + 3}" font-size="8.5" fill="#5b564c" text-anchor="middle">'
            f"{escape(thing.name.split(' ')[-1])}</text>"
        )
    for index, (camera, wedge) in enumerate(zip(cameras, wedges, strict=True)):
        color = camera.color or CAMERA_COLORS[index % len(CAMERA_COLORS)]
        line = f'stroke="{color}" stroke-width="1.2"' + (' stroke-dasharray="4 3"' if camera.dashed else "")
        parts.append(
            f'<polygon points="{path(wedge)}" fill="{color}" fill-opacity="{0 if camera.dashed else 0.16}" {line} '
            'stroke-linejoin="round"/>'
        )
    for dot, point in zip(dots, points, strict=True):
        x, y = pixel(dot)
        color = POINT_COLORS.get(point.color, "#000000")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{color}" stroke="#ffffff" stroke-width="1.2"/>')
    for index, (camera, wedge) in enumerate(zip(cameras, wedges, strict=True)):
        x, y = pixel(wedge[0])
        color = camera.color or CAMERA_COLORS[index % len(CAMERA_COLORS)]
        fill, ink = ("#ffffff", color) if camera.dashed else (color, "#ffffff")
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="8" fill="{fill}" stroke="{color}" stroke-width="1.4"/>'
            f'<text x="{x}" y="{y + 3.6}" font-size="10.5" font-weight="600" fill="{ink}" text-anchor="middle">'
            f"{escape(camera.label)}</text>"
        )
    parts.append(_scale_bar(scale, size))
    parts.append("</svg>")
    return "".join(parts)


def _wedge(camera: PlanCamera, ground: _Ground) -> np.ndarray:
    """(3, 2): the camera's place and the two ends of its field of view, level."""
    place = ground.flat(camera.pose[:3, 3])
    ahead = ground.direction(camera.pose[:3, 2])
    length = np.linalg.norm(ahead)
    ahead = ahead / length if length > 1e-6 else np.zeros(2)
    half = np.radians(camera.fov_deg / 2)
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (half, -half)]
    return np.stack([place, *(place + WEDGE_M / np.cos(half) * turn @ ahead for turn in turns)])


def _distance(place: np.ndarray, others: np.ndarray) -> float:
    return float(np.linalg.norm(others - place, axis=1).min())


def _footprint(thing: SceneObject) -> np.ndarray:
    """(4, 3) lower corners of the object's box."""
    c, s = np.cos(thing.yaw), np.sin(thing.yaw)
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) / 2 * thing.size
    return corners @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T + thing.center


def _grid(middle: np.ndarray, extent: float, size: int, pixel: object) -> str:
    """Lines every metre (every 5 m on a large plan)."""
    assert callable(pixel)
    step = 1.0 if extent <= 15 else 5.0
    lines = []
    for axis in (0, 1):
        first = np.ceil((middle[axis] - extent / 2) / step) * step
        for value in np.arange(first, middle[axis] + extent / 2, step):
            place = np.array(middle, dtype=float)
            place[axis] = value
            at = pixel(place)[axis]
            ends = (at, 0, at, size) if axis == 0 else (0, at, size, at)
            lines.append('<line x1="{}" y1="{}" x2="{}" y2="{}"/>'.format(*ends))
    return f'<g stroke="#e7e3d8" stroke-width="1">{"".join(lines)}</g>'


def _scale_bar(scale: float, size: int) -> str:
    length = round(scale, 1)
    y = size - 10
    return (
        f'<g stroke="#6c675c" stroke-width="1.4"><line x1="10" y1="{y}" x2="{10 + length}" y2="{y}"/>'
        f'<line x1="10" y1="{y - 3}" x2="10" y2="{y + 3}"/>'
        f'<line x1="{10 + length}" y1="{y - 3}" x2="{10 + length}" y2="{y + 3}"/></g>'
        f'<text x="{14 + length}" y="{y + 3}" font-size="9" fill="#6c675c">1 m</text>'
    )
