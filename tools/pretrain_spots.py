"""Places in rendered rooms that a mark can point at: surface points, objects and their boxes, and where other views
show them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from hatch_ray.data.rooms import PRETRAIN_SEEDS, Room, RoomOptions
from hatch_ray.data.visibility import visible_object
from tools.pretrain_data import THINGS, ViewSet, read_room

SPOTS = 32
"""Surface points a view; half of them on objects, where it shows any."""
OBJECTS = 10
EDGE = 0.04
"""Relative range of depth in 3 x 3 pixels above which no spot is put."""
BORDER = 0.04


@dataclass(frozen=True)
class SpotSet(ViewSet):
    """A ViewSet with what marks can point at: P spots a view and K objects a room.

    spot_pixel (R, V, P, 2) x, y; spot_point (R, V, P, 3) world; spot_depth (R, V, P) z; spot_thing (R, V, P) index into
    THINGS; spot_in (R, V, V, P, 2): pixel of view b that shows spot p of view a, -1 = not seen. name (R, K) index into
    THINGS, -1 = no object; center (R, K, 3); box (R, V, K, 4) in 0-1000, -1 = not shown well enough to ask about.
    """

    spot_pixel: np.ndarray
    spot_point: np.ndarray
    spot_depth: np.ndarray
    spot_thing: np.ndarray
    spot_in: np.ndarray
    name: np.ndarray
    center: np.ndarray
    box: np.ndarray


def render_spots(n_rooms: int, options: RoomOptions, offset: int = 0) -> SpotSet:
    """Render rooms PRETRAIN_SEEDS + offset ... and read off what the questions about marks need."""
    rows = []
    for index in range(n_rooms):
        room = Room(PRETRAIN_SEEDS + offset + index, options)
        rows.append(read_room(room) | _read_spots(room) | _read_objects(room))
    return SpotSet(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _read_spots(room: Room) -> dict[str, np.ndarray]:
    _, depth, instances = room.rendered
    o, focal = room.options, room.intrinsics[0, 0]
    rng = np.random.default_rng([room.seed, 20252])
    low, high = minimum_filter(depth, (1, 3, 3)), maximum_filter(depth, (1, 3, 3))
    able = (low > 0) & (high - low < EDGE * high)
    edge = round(BORDER * o.width)
    inside = np.zeros_like(able)
    inside[:, edge : o.height - edge, edge : o.width - edge] = True
    able &= inside
    pixels = np.zeros((len(room), SPOTS, 2), np.int16)
    for view in range(len(room)):
        on_objects = np.flatnonzero(able[view] & (instances[view] >= 0))
        anywhere = np.flatnonzero(able[view])
        if not len(anywhere):
            raise ValueError(f"{room.id}: view {view} shows no surface that a mark can point at")
        half = SPOTS // 2 if len(on_objects) else 0
        flat = np.concatenate(
            [rng.choice(on_objects, half) if half else on_objects[:0], rng.choice(anywhere, SPOTS - half)]
        )
        pixels[view] = np.stack([flat % o.width, flat // o.width], axis=1)
    u, v = pixels[..., 0].astype(int), pixels[..., 1].astype(int)
    of_view = np.arange(len(room))[:, None]
    z = depth[of_view, v, u]
    ray = np.stack([(u + 0.5 - o.width / 2) / focal, (v + 0.5 - o.height / 2) / focal, np.ones(u.shape)], axis=-1)
    rotation, position = room.poses[:, :3, :3], room.poses[:, :3, 3]
    point = position[:, None] + np.einsum("vij,vpj->vpi", rotation, ray * z[..., None])
    owner = instances[of_view, v, u]
    names = np.array([THINGS.index(item.name) for item in room.objects])
    half_size = room.size / 2
    across = point[..., :2] / half_size
    north_south = np.abs(across[..., 1]) > np.abs(across[..., 0])
    wall = np.where(north_south, np.where(across[..., 1] > 0, 0, 2), np.where(across[..., 0] > 0, 1, 3))
    surface = np.where(point[..., 2] < 0.03, 1, 2 + wall)
    return {
        "spot_pixel": pixels,
        "spot_point": point.astype(np.float32),
        "spot_depth": z,
        "spot_thing": np.where(owner >= 0, names[np.maximum(owner, 0)], surface).astype(np.int16),
        "spot_in": _seen_in(room, point),
    }


def _seen_in(room: Room, point: np.ndarray) -> np.ndarray:
    """(V, V, P, 2) pixels of view b that show the points (V, P, 3) of view a, by reprojection with a depth check."""
    _, depth, _ = room.rendered
    o, focal = room.options, room.intrinsics[0, 0]
    found = np.full((len(room), len(room), point.shape[1], 2), -1, np.int16)
    for b in range(len(room)):
        local = (point - room.poses[b, :3, 3]) @ room.poses[b, :3, :3]
        ahead = np.maximum(local[..., 2], 1e-3)
        u = np.floor(local[..., 0] / ahead * focal + o.width / 2).clip(-1, o.width).astype(int)
        v = np.floor(local[..., 1] / ahead * focal + o.height / 2).clip(-1, o.height).astype(int)
        inside = (local[..., 2] > 0.1) & (u >= 0) & (u < o.width) & (v >= 0) & (v < o.height)
        seen = depth[b][np.clip(v, 0, o.height - 1), np.clip(u, 0, o.width - 1)]
        same = inside & (np.abs(seen - local[..., 2]) < np.maximum(0.05, 0.03 * local[..., 2]))
        found[:, b] = np.where(same[..., None], np.stack([u, v], axis=-1), -1)
    return found


def _read_objects(room: Room) -> dict[str, np.ndarray]:
    name = np.full(OBJECTS, -1, np.int16)
    center = np.zeros((OBJECTS, 3), np.float32)
    box = np.full((len(room), OBJECTS, 4), -1, np.int16)
    for index, thing in enumerate(room.objects):
        name[index], center[index] = THINGS.index(thing.name), thing.center
        for view in range(len(room)):
            shown = visible_object(room.frame(view), thing, view)
            if shown is not None and shown.box is not None:
                box[view, index] = shown.box
    return {"name": name, "center": center, "box": box}
