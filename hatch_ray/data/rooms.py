"""Furnished rooms, rendered by ray casting (trimesh + embree): posed RGB-D views with known objects, from a seed.

World axes: x east, y north, z up, metres; the floor is z = 0 and the room is centred on the z axis. With `compass` the
walls' hue turns with the direction from the room's middle and the sky above the open room with the direction of the
ray, so that a single view shows where it looks; without it walls have random colours and the sky is grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import trimesh
from trimesh.util import append_faces

from hatch_ray.data.room_furniture import Furniture, furnish, wall_parts
from hatch_ray.data.room_paint import Paint
from hatch_ray.data.scene import Frame, SceneObject

PRETRAIN_SEEDS = 10_000_000
"""Rooms with this seed or above belong to hatch-tiny's pretraining; every run of its own stays below."""


@dataclass(frozen=True)
class RoomOptions:
    """Sizes in metres, angles in degrees; pairs are (low, high) of a uniform draw unless said otherwise."""

    width: int = 112
    height: int = 112
    fov_deg: float = 90.0
    """Horizontal."""
    n_views: int = 8
    compass: bool = True
    side: tuple[float, float] = (4.5, 7.0)
    """Both sides of the floor."""
    wall_height: float = 2.6
    n_objects: tuple[int, int] = (6, 10)
    camera_height: tuple[float, float] = (1.3, 1.6)
    height_std: float = 0.03
    """A room has one camera height; its views differ from it by this standard deviation."""
    pitch: tuple[float, float] = (-5.0, 3.0)
    """Mean and standard deviation; above the horizon is positive."""
    roll_std: float = 2.0
    walk: bool = True
    """Cameras follow a straight walk through the room, in order; else they stand about a common place in any order."""
    step: tuple[float, float] = (0.1, 0.3)
    """Length of a step of the walk, from one view to the next."""
    sway: float = 0.1
    """Standard deviation of a camera's place to the side of the walk."""
    spread: float = 0.9
    """Without the walk: cameras stand within this distance of a common place."""
    heading_spread: float = 38.0
    """Cameras look within this angle of the walk's, or the common, direction."""
    off_middle: float = 60.0
    """That direction is towards the room's middle within this angle."""
    min_ahead: float = 1.6
    """Nearest wall straight ahead of a camera."""


class Room:
    """One room and its cameras: a Scene. All views are rendered together when the first is asked for.

    The same seed and options give the same room. Raises ValueError when options leave no place for the cameras.
    """

    def __init__(self, seed: int, options: RoomOptions | None = None) -> None:
        self.seed = seed
        self.options = options or RoomOptions()
        self.id = f"room-{seed}"
        self.up: np.ndarray | None = np.array([0.0, 0.0, 1.0])
        rng = np.random.default_rng([seed, 20251])
        self.size: np.ndarray = rng.uniform(*self.options.side, size=2)
        self._furniture: list[Furniture] = self._furnish(rng)
        self.objects: tuple[SceneObject, ...] = tuple(item.scene_object for item in self._furniture)
        self.poses: np.ndarray = self._place_cameras(rng)
        self._paint_seed = int(rng.integers(2**31))

    def __len__(self) -> int:
        return self.options.n_views

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3); square pixels, the optical axis through the image's middle."""
        o = self.options
        focal = o.width / 2 / np.tan(np.radians(o.fov_deg) / 2)
        return np.array([[focal, 0, (o.width - 1) / 2], [0, focal, (o.height - 1) / 2], [0, 0, 1]])

    def frame(self, index: int) -> Frame:
        """View `index`, 0 to len - 1."""
        if not 0 <= index < len(self):
            raise ValueError(f"{self.id} has views 0 to {len(self) - 1}, asked for {index}")
        rgb, depth, instances = self.rendered
        k = self.intrinsics
        return Frame(f"{self.id}-{index}", rgb[index], depth[index], k, k, self.poses[index], instances[index])

    @cached_property
    def rendered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rgb (V, H, W, 3) uint8, z-depth (V, H, W) float32 (0 = sky), instances (V, H, W) int32 (-1 = none)."""
        o = self.options
        focal = self.intrinsics[0, 0]
        v, u = np.mgrid[: o.height, : o.width].reshape(2, -1) + 0.5
        rays_P3 = np.stack([(u - o.width / 2) / focal, (v - o.height / 2) / focal, np.ones_like(u)], axis=1)
        direction = (rays_P3 @ self.poses[:, :3, :3].transpose(0, 2, 1)).astype(np.float32).reshape(-1, 3)
        origin = np.repeat(self.poses[:, :3, 3].astype(np.float32), len(rays_P3), axis=0)
        parts = wall_parts(self.size, o.wall_height) + [part for item in self._furniture for part in item.parts]
        mesh = trimesh.Trimesh(*append_faces([p.vertices for p in parts], [p.faces for p in parts]), process=False)
        triangles = mesh.triangles
        corner = triangles[:, 0]
        normal = np.cross(triangles[:, 1] - corner, triangles[:, 2] - corner)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        plane_F4 = np.concatenate([normal, np.sum(normal * corner, axis=1, keepdims=True)], axis=1).astype(np.float32)
        owner_F = np.repeat(np.array([part.owner for part in parts], np.int32), [len(part.faces) for part in parts])

        face_N = mesh.ray.intersects_first(origin, direction)
        sky = np.flatnonzero(face_N < 0)
        plane = plane_F4[face_N]
        # Rays have unit z in the camera, so the ray parameter is the z-depth.
        depth = (plane[:, 3] - np.einsum("ij,ij->i", plane[:, :3], origin)) / np.einsum(
            "ij,ij->i", plane[:, :3], direction
        )
        depth[sky] = 0
        paint = Paint(parts, normal, self.size, o.compass, np.random.default_rng(self._paint_seed))
        rgb = paint.surface(face_N, owner_F[face_N], origin + depth[:, None] * direction)
        rgb[sky] = paint.sky(direction[sky])
        instances = np.maximum(owner_F[face_N], -1)
        instances[sky] = -1
        shape = (len(self), o.height, o.width)
        return (rgb * 255).astype(np.uint8).reshape(*shape, 3), depth.reshape(shape), instances.reshape(shape)

    def _furnish(self, rng: np.random.Generator) -> list[Furniture]:
        return furnish(rng, self.size, int(rng.integers(*self.options.n_objects, endpoint=True)))

    def _place_cameras(self, rng: np.random.Generator) -> np.ndarray:
        """(V, 4, 4) camera-to-world: a first place and a direction, then each camera along or about them."""
        o = self.options
        poses: list[np.ndarray] = []
        for _ in range(1000):
            middle = rng.uniform(-0.5, 0.5, 2) * (self.size - 2.0)
            towards_middle = np.degrees(np.arctan2(-middle[0], -middle[1]))
            heading = towards_middle + rng.uniform(-o.off_middle, o.off_middle)
            height = rng.uniform(*o.camera_height)
            poses, come = [], 0.0
            for _ in range(5 * o.n_views):
                if o.walk:
                    ahead = come + (rng.uniform(*o.step) if poses else 0.0)
                    place = middle + ahead * _unit(heading) + rng.normal(0, o.sway) * _unit(heading + 90)
                else:
                    ahead = 0.0
                    place = middle + o.spread * np.sqrt(rng.uniform()) * _unit(rng.uniform(0, 360))
                facing = heading + rng.uniform(-o.heading_spread, o.heading_spread)
                if self._walkable(place) and self._ahead(place, facing) >= o.min_ahead:
                    position = np.array([*place, height + rng.normal(0, o.height_std)])
                    poses.append(camera_pose(position, facing, rng.normal(*o.pitch), rng.normal(0, o.roll_std)))
                    come = ahead
                if len(poses) == o.n_views:
                    return np.stack(poses)
        raise ValueError(f"{self.id}: no place for {o.n_views} cameras in {self.size.round(1)} m; relax RoomOptions")

    def _walkable(self, place: np.ndarray) -> bool:
        """0.4 m from the walls and 0.3 m outside every box."""
        if np.any(np.abs(place) > self.size / 2 - 0.4):
            return False
        return all(item.clearance(place) > 0.3 for item in self._furniture)

    def _ahead(self, place: np.ndarray, heading: float) -> float:
        """Level distance to the wall in the direction of the heading."""
        step = _unit(heading)
        with np.errstate(divide="ignore"):
            return float(np.min((self.size / 2 - np.sign(step) * place) / np.abs(step)))


def _unit(heading_deg: float) -> np.ndarray:
    """(2,) level direction of a compass heading: 0 north (+y), 90 east (+x)."""
    return np.array([np.sin(np.radians(heading_deg)), np.cos(np.radians(heading_deg))])


def camera_pose(position: np.ndarray, heading_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """(4, 4) camera-to-world (OpenCV axes). heading 0 looks north, 90 east; pitch up, roll right side down positive."""
    level = np.array([*_unit(heading_deg), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    pitch, roll = np.radians([pitch_deg, roll_deg])
    forward = np.cos(pitch) * level + np.sin(pitch) * up
    level_right = np.cross(level, up)
    level_down = np.cross(forward, level_right)
    right = np.cos(roll) * level_right + np.sin(roll) * level_down
    down = np.cos(roll) * level_down - np.sin(roll) * level_right
    return np.vstack([np.stack([right, down, forward, position], axis=1), [0, 0, 0, 1]])
