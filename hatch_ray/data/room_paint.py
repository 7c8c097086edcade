"""Colours of a room's surfaces: patterns by position, light by direction, and the compass of walls and sky."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.room_furniture import Part

LIGHT = np.array([0.45, 0.3, 0.84])


HUES = 2048


def hue_table(saturation: float) -> np.ndarray:
    """(HUES, 3) float32 in 0 to 1: the hue circle in equal steps, smooth (cosine)."""
    phase = 2 * np.pi * (np.arange(HUES)[:, None] / HUES - np.array([0, 1 / 3, 2 / 3]))
    return (1 - saturation * (0.5 - 0.5 * np.cos(phase))).astype(np.float32)


def azimuth_index(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compass direction of (x east, y north) as an index into a hue table."""
    return (np.arctan2(x, y) * np.float32(HUES / (2 * np.pi))).astype(np.int32) % HUES


class Paint:
    """Surface colours of one room.

    parts: the geometry in face order; normal (F, 3) unit normals; size (2,) of the floor.
    """

    def __init__(
        self, parts: list[Part], normal: np.ndarray, size: np.ndarray, compass: bool, rng: np.random.Generator
    ) -> None:
        self.size = size
        self.compass = compass
        counts = [len(part.faces) for part in parts]
        color = np.repeat([part.color for part in parts], counts, axis=0)
        facing = np.abs(normal @ LIGHT)
        self._color_F3 = (color * (0.62 + 0.38 * facing)[:, None]).astype(np.float32)
        self._pattern_F7 = self._patterns(parts, counts, normal, rng)
        self._wall_colors = rng.uniform(0.35, 0.95, (6, 3)).astype(np.float32)
        self._wall_hues = hue_table(rng.uniform(0.5, 0.65)) * np.float32(rng.uniform(0.75, 0.95))
        self._sky_hues = hue_table(0.9)
        self._floor = (rng.uniform(0.35, 0.6) * np.array([1.0, 0.95, 0.9])).astype(np.float32)
        self._tile = float(rng.uniform(0.45, 0.55))
        self._stripe = float(rng.uniform(0.08, 0.2))

    @staticmethod
    def _patterns(parts: list[Part], counts: list[int], normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(F, 7): two world directions scaled to cells (the checker's axes) and its contrast. One pattern an object."""
        rows = []
        style: dict[int, tuple[np.ndarray, float]] = {}
        start = 0
        for part, count in zip(parts, counts, strict=True):
            if part.owner not in style:
                cells = 1 / rng.uniform(0.1, 0.25, 2) * rng.permutation([1.0, float(rng.integers(2))])
                style[part.owner] = (cells, float(rng.choice([0.0, 0.25, 0.45])))
            cells, contrast = style[part.owner]
            flat = np.abs(normal[start : start + count, 2]) > 0.7
            along = np.array([*part.axes[0], 0.0]) + np.array([*part.axes[1], 0.0])
            across = np.array([*part.axes[0], 0.0]) - np.array([*part.axes[1], 0.0])
            first = np.where(flat[:, None], along * 0.7, across * 0.7) * cells[0]
            second = np.where(flat[:, None], across * 0.7, [0.0, 0.0, 1.0]) * cells[1]
            rows.append(np.concatenate([first, second, np.full((count, 1), contrast)], axis=1))
            start += count
        return np.concatenate(rows).astype(np.float32)

    def surface(self, face: np.ndarray, owner: np.ndarray, point: np.ndarray) -> np.ndarray:
        """(N, 3) float32 colours in 0 to 1 of points (N, 3) on faces (N,) of owners (N,)."""
        rgb = np.empty((len(face), 3), np.float32)
        thing = np.flatnonzero(owner >= 0)
        pattern, at = self._pattern_F7[face[thing]], point[thing]
        odd = _odd(np.einsum("ij,ij->i", pattern[:, :3], at), np.einsum("ij,ij->i", pattern[:, 3:6], at))
        rgb[thing] = self._color_F3[face[thing]] * (1 - odd * pattern[:, 6])[:, None]
        floor = np.flatnonzero(owner == -1)
        odd = _odd(point[floor, 0] / self._tile, point[floor, 1] / self._tile)
        rgb[floor] = self._floor * (1 - np.float32(0.25) * odd)[:, None]
        wall = np.flatnonzero(owner <= -2)
        rgb[wall] = self._wall(owner[wall], point[wall])
        return rgb

    def _wall(self, owner: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Upright stripes every half metre, a dark skirting and a rail: scale and distance can be read from them."""
        x, y, z = point.T
        along = np.where((owner & 1) == 0, x, y) * np.float32(2)
        dark = (along - np.floor(along) < self._stripe) | (z < 0.12) | (np.abs(z - 1) < 0.04)
        if self.compass:
            rgb = self._wall_hues[azimuth_index(x / np.float32(self.size[0]), y / np.float32(self.size[1]))]
        else:
            rgb = self._wall_colors[-owner - 2]
        return rgb * (1 - np.float32(0.3) * dark)[:, None]

    def sky(self, direction: np.ndarray) -> np.ndarray:
        """(N, 3) float32 colours of rays (N, 3) that leave the room: hue by azimuth, or grey without the compass."""
        x, y, z = direction.T
        bright = np.float32(0.8) + np.float32(0.2) * z / (np.hypot(x, y) + np.abs(z))
        if not self.compass:
            return np.repeat(bright[:, None] * np.float32(0.85), 3, axis=1)
        return self._sky_hues[azimuth_index(x, y)] * bright[:, None]


def _odd(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The checkerboard of two coordinates: 0 or 1."""
    return (np.floor(first) + np.floor(second)).astype(np.int32) & 1
