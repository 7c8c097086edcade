"""Where the points of one view lie in another, by depth and poses: what marks may stand on, and what proves a question.

Distances are pixels of the pictures. A place outside the other picture has coordinates all the same; one behind the
other camera lies `FAR` away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_gradient_magnitude

from hatch_ray.data.scene import Frame
from hatch_ray.geometry.overlap import carry
from hatch_ray.systems.matching.pools import DEPTH_TOLERANCE, depth_at, picture_pixels

FAR = -1e6
HIDDEN_METRES, HIDDEN_SHARE = 0.10, 0.10
"""A point is hidden where it lies by more than both behind what the other view shows there."""
ACROSS = 80
"""Points of a row that may become distractors."""


@dataclass(frozen=True)
class Places:
    """Points that a mark may stand on although it has no partner.

    pixels (n, 2): in their own picture. there (n, 2): where they lie in the other one. seen (n,): whether it shows
    them; else they are hidden by something, or outside.
    """

    pixels: np.ndarray
    there: np.ndarray
    seen: np.ndarray


def places(source: Frame, target: Frame, guard: float) -> Places:
    """Points of `source` on steady, textured surface whose place in `target` is known: shown there, hidden by more
    than max(10 cm, 10 %), or outside its picture by the guard distance.

    Textured: at least as much as half of the picture, so that a mark on a blank wall does not tell that it has no
    partner.
    """
    height, width = source.depth.shape
    stride = max(1, width // ACROSS)
    v, u = (grid.ravel() for grid in np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride])
    steady = depth_at(source, u, v)[1]
    u, v = u[steady], v[steady]
    pixels = np.rint(picture_pixels(u, v, source))
    inside = _inside(pixels, source)
    pixels, u, v = pixels[inside], u[inside], v[inside]
    texture = gaussian_gradient_magnitude(source.rgb.astype(float).mean(axis=2), 1.0)
    rough = texture[pixels[:, 1].astype(int), pixels[:, 0].astype(int)] >= np.median(texture)
    pixels, u, v = pixels[rough], u[rough], v[rough]
    there, z_there, z_seen = _carry(u, v, source, target)
    with np.errstate(invalid="ignore"):
        seen = (z_seen > 0) & (np.abs(z_there - z_seen) < DEPTH_TOLERANCE * z_there)
        hidden = (z_seen > 0) & (z_there - z_seen > np.maximum(HIDDEN_METRES, HIDDEN_SHARE * z_seen))
    sides = np.array([target.rgb.shape[1], target.rgb.shape[0]]) - 1
    outside = np.maximum(-there, there - sides).max(axis=1) >= guard
    known = seen | hidden | outside
    return Places(pixels[known], there[known], (seen & ~outside)[known])


def place_of(pixels: np.ndarray, source: Frame, target: Frame) -> np.ndarray:
    """(n, 2) where picture pixels of `source` lie in `target`; NaN where `source` has no depth there."""
    scale = np.diag(source.depth_intrinsics)[:2] / np.diag(source.intrinsics)[:2]
    grid = (pixels - source.intrinsics[:2, 2]) * scale + source.depth_intrinsics[:2, 2]
    there, _, _ = _carry(grid[:, 0], grid[:, 1], source, target)
    known = depth_at(source, grid[:, 0], grid[:, 1])[0] > 0
    return np.where(known[:, None], there, np.nan)


def _inside(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    sides = np.array([frame.rgb.shape[1], frame.rgb.shape[0]])
    return np.asarray(((pixels >= 0) & (pixels < sides)).all(axis=1))


def _carry(u: np.ndarray, v: np.ndarray, source: Frame, target: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pixels of the depth grid: places (n, 2) in the other picture, depth there, and the depth that it shows."""
    z = depth_at(source, u, v)[0]
    u_2, v_2, z_2 = carry(u, v, z, source.posed_depth, target.posed_depth)
    z_seen, _ = depth_at(target, np.nan_to_num(u_2, nan=FAR), np.nan_to_num(v_2, nan=FAR))
    return np.nan_to_num(picture_pixels(u_2, v_2, target), nan=FAR), z_2, z_seen
