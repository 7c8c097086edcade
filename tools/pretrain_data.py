"""What hatch-tiny is pretrained on: views of rooms of its own seeds, and short questions that ground and compare.

No action list, no question of the demo's tasks and no room of the demo's seeds occurs here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from hatch_ray.data.room_furniture import COLORS, KINDS
from hatch_ray.data.rooms import PRETRAIN_SEEDS, Room, RoomOptions
from hatch_ray.run_folder import write_atomic

CELL_PX = 28
"""A cell is what one merged token of the encoder sees; a view of 112 x 112 pixels has 4 x 4, one of 224 x 224 8 x 8."""
GRID = 4
CELLS = GRID * GRID
"""Of a view of 112 x 112 pixels."""
COMPASS_WALLS = ("north wall", "east wall", "south wall", "west wall")
SURFACES = ("sky", "floor", *COMPASS_WALLS)
THINGS = (*SURFACES, *(f"{color} {kind}" for color in COLORS for kind in KINDS))
HELDOUT_OFFSET = 1_000_000
"""Held-out rooms of the pretraining start this far above its training rooms."""


@dataclass(frozen=True)
class ViewSet:
    """Rendered rooms as arrays: R rooms of V views.

    rgb (R, V, H, W, 3) uint8; heading (R, V) degrees; position (R, V, 3); ahead (R, V) metres to the wall ahead;
    point (R, V, CELLS, 3) world point at the middle of each patch (for the sky: a point 1 m along the ray);
    depth (R, V, CELLS), 0 = sky; azimuth (R, V, CELLS) of the ray, degrees; thing (R, V, CELLS) index into THINGS;
    cell_of (R, V, V, CELLS): the patch of view b that shows the point of patch c of view a, -1 = not seen.
    """

    rgb: np.ndarray
    heading: np.ndarray
    position: np.ndarray
    ahead: np.ndarray
    point: np.ndarray
    depth: np.ndarray
    azimuth: np.ndarray
    thing: np.ndarray
    cell_of: np.ndarray

    @property
    def size(self) -> int:
        """Pixels of a view's side."""
        return int(self.rgb.shape[2])

    @property
    def grid(self) -> int:
        """Cells of a view's row."""
        return self.size // CELL_PX

    @property
    def cells(self) -> int:
        """Cells of a view."""
        return self.grid**2

    def save(self, folder: Path) -> None:
        """One .npy file an array."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)
        write_atomic(folder / "done", "")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The arrays written by `save`, read when used."""
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls.__dataclass_fields__})


def render_views(
    n_rooms: int, options: RoomOptions, offset: int = 0, progress: Callable[[int], None] | None = None
) -> ViewSet:
    """Render rooms PRETRAIN_SEEDS + offset ... and read off what the questions need. progress gets rooms done."""
    rows: list[dict[str, np.ndarray]] = []
    for index in range(n_rooms):
        rows.append(read_room(Room(PRETRAIN_SEEDS + offset + index, options)))
        if progress:
            progress(index + 1)
    return ViewSet(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


def read_room(room: Room) -> dict[str, np.ndarray]:
    """One room's row of every array of a ViewSet."""
    rgb, depth, instances = room.rendered
    o, focal = room.options, room.intrinsics[0, 0]
    grid = o.width // CELL_PX
    v, u = ((np.mgrid[:grid, :grid] + 0.5) / grid * np.array([o.height, o.width])[:, None, None]).astype(int)
    v, u = v.ravel(), u.ravel()
    ray = np.stack([(u + 0.5 - o.width / 2) / focal, (v + 0.5 - o.height / 2) / focal, np.ones(grid**2)], axis=1)
    world = ray @ room.poses[:, :3, :3].transpose(0, 2, 1)
    position = room.poses[:, :3, 3]
    z = depth[:, v, u]
    point = position[:, None] + np.where(z > 0, z, 1.0)[..., None] * world
    forward = room.poses[:, :3, 2]
    half = room.size / 2
    with np.errstate(divide="ignore"):
        ahead = ((half - np.sign(forward[:, :2]) * position[:, :2]) / np.abs(forward[:, :2])).min(axis=1)
    return {
        "rgb": rgb,
        "heading": np.degrees(np.arctan2(forward[:, 0], forward[:, 1])) % 360,
        "position": position,
        "ahead": ahead,
        "point": point,
        "depth": z,
        "azimuth": np.degrees(np.arctan2(world[..., 0], world[..., 1])) % 360,
        "thing": _things(room, z, instances[:, v, u], point),
        "cell_of": _cells_of(room, depth, point, z),
    }


def _things(room: Room, z: np.ndarray, owner: np.ndarray, point: np.ndarray) -> np.ndarray:
    """(V, CELLS) index into THINGS."""
    half = room.size / 2
    side = point[..., :2] / half
    north_south = np.abs(side[..., 1]) > np.abs(side[..., 0])
    wall = np.where(north_south, np.where(side[..., 1] > 0, 0, 2), np.where(side[..., 0] > 0, 1, 3))
    names = np.array([THINGS.index(item.name) for item in room.objects])
    surface = np.where(z == 0, 0, np.where(point[..., 2] < 0.03, 1, 2 + wall))
    return np.where(owner >= 0, names[np.maximum(owner, 0)], surface)


def _cells_of(room: Room, depth: np.ndarray, point: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(V, V, CELLS): where view b shows the point of patch c of view a, by reprojection with a depth check."""
    o, focal = room.options, room.intrinsics[0, 0]
    n_views = len(room)
    grid = o.width // CELL_PX
    found = np.full((n_views, n_views, grid**2), -1, np.int8)
    for b in range(n_views):
        rotation, position = room.poses[b, :3, :3], room.poses[b, :3, 3]
        local = (point - position) @ rotation
        ahead = np.maximum(local[..., 2], 1e-3)
        u = (local[..., 0] / ahead * focal + o.width / 2).astype(int)
        v = (local[..., 1] / ahead * focal + o.height / 2).astype(int)
        inside = (local[..., 2] > 0.1) & (u >= 0) & (u < o.width) & (v >= 0) & (v < o.height) & (z > 0)
        seen = depth[b][np.clip(v, 0, o.height - 1), np.clip(u, 0, o.width - 1)]
        same = inside & (np.abs(seen - local[..., 2]) < np.maximum(0.05, 0.05 * local[..., 2]))
        cell = v * grid // o.height * grid + u * grid // o.width
        found[:, b] = np.where(same, cell, -1)
    return found


def wrap(degrees: float) -> float:
    """Into -180 to 180."""
    return (degrees + 180) % 360 - 180


def side(degrees: float) -> str:
    """right33 or left12: the side first, then whole degrees."""
    whole = round(wrap(degrees))
    return f"right{whole}" if whole >= 0 else f"left{-whole}"


def seen_from(views: ViewSet, room: int, view: int, point: np.ndarray) -> str:
    """Bearing and level distance of a world point from a camera."""
    east, north = (point - views.position[room, view])[:2]
    bearing = np.degrees(np.arctan2(east, north)) - views.heading[room, view]
    return f"{side(bearing)},{np.hypot(east, north):.1f}"


def cell_name(index: int, grid: int = GRID) -> str:
    """Row and column of a cell, from 0."""
    return f"{index // grid}{index % grid}"


QUESTIONS = (
    "heading",
    "ahead",
    "place",
    "patch",
    "depth",
    "compass",
    "thing",
    "direction",
    "camera",
    "seen",
    "match",
)
"""The first seven ask about one image, the others compare two."""
COMPARING = QUESTIONS[7:]
TEXTS = ("patch", "match")
"""Their answers are names; those of the others hold numbers that can be nearly right."""


def ask(kind: str, views: ViewSet, room: int, shown: tuple[int, ...], rng: random.Random) -> tuple[str, str] | None:
    """One question and its answer about the views `shown` (in prompt order), or None where this kind has no answer."""
    k = rng.randrange(len(shown))
    a = shown[k]
    c = rng.randrange(views.cells)
    cell = cell_name(c, views.grid)
    match kind:
        case "heading":
            return f"heading{k}?", f"{round(views.heading[room, a]) % 360}"
        case "ahead":
            return f"ahead{k}?", f"{views.ahead[room, a]:.1f}"
        case "place":
            x, y = views.position[room, a, :2]
            east, north = "east" if x > 0 else "west", "north" if y > 0 else "south"
            return f"position{k}?", f"{east}{abs(x):.1f}{north}{abs(y):.1f}"
        case "patch":
            return f"patch{k}:{cell}?", f"{THINGS[views.thing[room, a, c]]}"
        case "depth":
            if views.depth[room, a, c] == 0:
                return None
            return f"depth{k}:{cell}?", f"{views.depth[room, a, c]:.1f}"
        case "compass":
            return f"facing{k}:{cell}?", f"{round(views.azimuth[room, a, c]) % 360}"
        case "thing":
            thing = views.thing[room, a, c]
            cells = np.flatnonzero(views.thing[room, a] == thing)
            if thing < len(SURFACES):
                return None
            nearest = cells[len(cells) // 2]
            return f"where{k} {THINGS[thing]}?", f"{seen_from(views, room, a, views.point[room, a, nearest])}"
    # Always from an earlier image to a later one: with both orders mixed, the sides cancel until the order is read.
    k, other = sorted(rng.sample(range(len(shown)), 2))
    a = shown[k]
    b = shown[other]
    match kind:
        case "direction":
            return f"direction{k}to{other}?", f"{side(views.heading[room, b] - views.heading[room, a])}"
        case "camera":
            return f"camera{other}from{k}?", f"{seen_from(views, room, a, views.position[room, b])}"
        case "seen":
            if views.depth[room, b, c] == 0:
                return None
            return f"from{k}patch{other}:{cell}?", f"{seen_from(views, room, a, views.point[room, b, c])}"
        case "match":
            if views.depth[room, a, c] == 0 or (views.cell_of[room, a, b, c] < 0 and rng.random() < 0.6):
                return None
            found = views.cell_of[room, a, b, c]
            return f"match{k}:{cell}in{other}?", cell_name(found, views.grid) if found >= 0 else "none"
    raise ValueError(f"no question kind {kind!r}")


def all_pairs(views: ViewSet, room: int, shown: tuple[int, ...]) -> tuple[str, str]:
    """How every two cameras stand, as JSON: bearing and distance of the later one, and how its direction differs."""
    entries = []
    for i, a in enumerate(shown):
        for j in range(i + 1, len(shown)):
            b = shown[j]
            bearing, far = seen_from(views, room, a, views.position[room, b]).split(",")
            facing = side(views.heading[room, b] - views.heading[room, a])
            entries.append(f'{{"from":{i},"to":{j},"bearing":"{bearing}","far":{far},"facing":"{facing}"}}')
    return "pairs?", f"[{','.join(entries)}]"
