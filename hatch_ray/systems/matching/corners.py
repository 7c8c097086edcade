"""Points of a photo that another photo may show too, where nobody has named any: corners, spread over a grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter, sobel

from hatch_ray.data.numbered import circle_radius

ACROSS, DOWN = 4, 3
"""Cells of the grid, each of which gives a corner at most."""
SMOOTH = 1.5
"""Pixels over which gradients are gathered."""
FLAT = 1e-4
"""A corner's response (least eigenvalue of the gradients' matrix, of colours from 0 to 1) below this is none."""


def corners(rgb: np.ndarray, guard: float) -> np.ndarray:
    """(n, 2) whole pixels x, y of a photo (h, w, 3) uint8, row by row of the grid: in each cell the strongest corner
    (Shi and Tomasi, 1994) whose ring lies inside the photo, `guard` from all others. A cell without one gives none.
    """
    height, width = rgb.shape[:2]
    response = _response(rgb.astype(float).mean(axis=2) / 255)
    edge = circle_radius(width) + 1
    allowed = np.zeros((height, width), bool)
    allowed[edge : height - edge, edge : width - edge] = True
    y, x = np.mgrid[:height, :width]
    found: list[tuple[int, int]] = []
    rows, columns = (np.linspace(0, size, count + 1).astype(int) for size, count in ((height, DOWN), (width, ACROSS)))
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            cell = (slice(top, bottom), slice(left, right))
            strength = np.where(allowed[cell], response[cell], 0)
            if strength.size == 0 or strength.max() < FLAT:
                continue
            row, column = np.unravel_index(int(strength.argmax()), strength.shape)
            at = (int(left + column), int(top + row))
            found.append(at)
            allowed &= np.hypot(x - at[0], y - at[1]) >= guard
    return np.array(found, dtype=float).reshape(-1, 2)


def _response(grey: np.ndarray) -> np.ndarray:
    across, down = sobel(grey, axis=1) / 8, sobel(grey, axis=0) / 8
    xx, yy, xy = (gaussian_filter(product, SMOOTH) for product in (across**2, down**2, across * down))
    least: np.ndarray = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)
    return least
