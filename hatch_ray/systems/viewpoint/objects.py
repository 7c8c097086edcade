"""One thing alone in an open room, and cameras on an arc around it: a posed, object-centric sequence.

Colour and kind are the object: those of one split occur in no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hatch_ray.data.room_furniture import COLORS, KINDS, Furniture, alone
from hatch_ray.data.rooms import Room, RoomOptions, camera_pose
from hatch_ray.data.store import Split

SHAPES: dict[str, dict[str, Any]] = KINDS | yaml.safe_load(
    (Path(__file__).parent / "shapes.yaml").read_text(encoding="utf-8")
)
"""The rooms' furniture, and more."""
ARC_DEG = 200.0
"""Cameras stand on an arc of this length, in order."""
RADIUS = (1.3, 3.0)
"""Distance to the object's middle, in its largest side."""
RADIUS_JITTER = 0.08
ELEVATION_DEG = (10.0, 40.0)
ELEVATION_JITTER_DEG = 4.0
OFF_CENTRE = 0.1
"""The object's middle lies within this share of the field of view beside the photo's."""
MAX_ROLL_DEG = 5.0
HELDOUT_COLORS = 3
"""So many colours of each kind are held out."""


def object_names(split: Split) -> list[tuple[str, str]]:
    """(colour, kind) of the split's objects; every kind is in both splits."""
    rng = np.random.default_rng(205)
    found = []
    for kind in SHAPES:
        colors = rng.permutation(list(COLORS)).tolist()
        chosen = colors[:HELDOUT_COLORS] if split == "heldout" else colors[HELDOUT_COLORS:]
        found += [(color, kind) for color in chosen]
    return found


class ObjectOrbit(Room):
    """One object and cameras around it: a Scene. The same seed, split and options give the same one."""

    def __init__(self, seed: int, split: Split, options: RoomOptions) -> None:
        self._names = object_names(split)
        super().__init__(seed, options)
        self.id = f"object-{seed}"

    @property
    def centre(self) -> np.ndarray:
        """(3,) of the object's box."""
        return self.objects[0].center

    def _furnish(self, rng: np.random.Generator) -> list[Furniture]:
        color, kind = self._names[int(rng.integers(len(self._names)))]
        return [alone(rng, color, kind, SHAPES)]

    def _place_cameras(self, rng: np.random.Generator) -> np.ndarray:
        """(V, 4, 4) camera-to-world; the floor becomes as large as the arc needs."""
        o, reach = self.options, float(self.objects[0].size.max())
        start = rng.uniform(0, 360)
        radius, elevation = rng.uniform(*RADIUS) * reach, rng.uniform(*ELEVATION_DEG)
        poses = []
        for azimuth in start + np.linspace(0, ARC_DEG, o.n_views):
            azimuth += rng.uniform(-0.4, 0.4) * ARC_DEG / o.n_views
            distance = radius * rng.uniform(1 - RADIUS_JITTER, 1 + RADIUS_JITTER)
            height = elevation + rng.uniform(-ELEVATION_JITTER_DEG, ELEVATION_JITTER_DEG)
            east, north = np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))
            level, rise = np.cos(np.radians(height)), np.sin(np.radians(height))
            place = self.centre + distance * np.array([level * east, level * north, rise])
            aside, above = rng.uniform(-OFF_CENTRE, OFF_CENTRE, 2) * o.fov_deg
            poses.append(camera_pose(place, azimuth + 180 + aside, above - height, rng.uniform(-1, 1) * MAX_ROLL_DEG))
        self.size = np.full(2, 2 * radius * (1 + RADIUS_JITTER) + 1.0)
        return np.stack(poses)
