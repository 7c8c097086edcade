"""What a rendered room's pixels show, by ray casting of its own: the truth that matches and marks are held against."""

from __future__ import annotations

import numpy as np
import trimesh

from hatch_ray.data.room_furniture import wall_parts
from hatch_ray.data.rooms import Room, RoomOptions

WIDTH, HEIGHT = 160, 120


def room_of(seed: int, scale: int = 1) -> Room:
    return Room(seed, RoomOptions(width=scale * WIDTH, height=scale * HEIGHT, n_views=3))


def surface(room: Room, pixels: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(n, 3) where the rays through pixels meet the room."""
    parts = wall_parts(room.size, room.options.wall_height) + [part for item in room._furniture for part in item.parts]
    mesh = trimesh.util.concatenate([trimesh.Trimesh(part.vertices, part.faces, process=False) for part in parts])
    k = room.intrinsics
    plane = (pixels - k[:2, 2]) / np.diag(k)[:2]
    rays = np.hstack([plane, np.ones((len(plane), 1))]) @ pose[:3, :3].T
    hits, index, _ = mesh.ray.intersects_location(np.tile(pose[:3, 3], (len(rays), 1)), rays, multiple_hits=False)
    points = np.full((len(rays), 3), np.nan)
    points[index] = hits
    return points


def seen_at(room: Room, points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(n, 2) pixels of world points."""
    inside = (points - pose[:3, 3]) @ pose[:3, :3] @ room.intrinsics.T
    return inside[:, :2] / inside[:, 2:]
