"""What stands in a room: kinds of furniture as boxes, cylinders, cones and balls, and where they are put."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
import yaml

from hatch_ray.data.scene import SceneObject

_TABLE = yaml.safe_load((Path(__file__).parent / "furniture.yaml").read_text(encoding="utf-8"))
COLORS: dict[str, list[float]] = _TABLE["colors"]
KINDS: dict[str, dict[str, Any]] = _TABLE["kinds"]
"""kind: {"size", "at_wall", "shapes"}, as furniture.yaml says."""


@dataclass(frozen=True)
class Part:
    """A piece of geometry of one colour. owner: its object's id, -1 floor, -2 to -5 walls north, east, south, west."""

    vertices: np.ndarray
    faces: np.ndarray
    color: tuple[float, float, float]
    owner: int
    axes: np.ndarray
    """(2, 2) level directions along which its pattern runs."""


@dataclass(frozen=True)
class Furniture:
    scene_object: SceneObject
    parts: list[Part]

    def clearance(self, place: np.ndarray) -> float:
        """Level distance (m) from a place to the object's box; 0 inside."""
        local = _turn(-self.scene_object.yaw) @ (place - self.scene_object.center[:2])
        return float(np.linalg.norm(np.maximum(np.abs(local) - self.scene_object.size[:2] / 2, 0)))


def _turn(yaw: float) -> np.ndarray:
    return np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])


@cache
def _primitive(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces in the unit cube about the origin."""
    match name:
        case "box":
            mesh = trimesh.creation.box((1, 1, 1))
        case "cylinder":
            mesh = trimesh.creation.cylinder(radius=0.5, height=1, sections=16)
        case "cone":
            mesh = trimesh.creation.cone(radius=0.5, height=1, sections=16)
            mesh.apply_translation([0, 0, -0.5])
        case "ball":
            mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
        case _:
            raise ValueError(f"furniture.yaml: no primitive {name!r}")
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def wall_parts(size: np.ndarray, height: float) -> list[Part]:
    """Floor and four walls seen from inside; the room is open above."""
    x, y = size / 2
    corners = {
        -1: [(-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0)],
        -2: [(-x, y, 0), (x, y, 0), (x, y, height), (-x, y, height)],
        -3: [(x, y, 0), (x, -y, 0), (x, -y, height), (x, y, height)],
        -4: [(x, -y, 0), (-x, -y, 0), (-x, -y, height), (x, -y, height)],
        -5: [(-x, -y, 0), (-x, y, 0), (-x, y, height), (-x, -y, height)],
    }
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return [Part(np.array(quad, float), faces, (1, 1, 1), owner, np.eye(2)) for owner, quad in corners.items()]


def furnish(rng: np.random.Generator, size: np.ndarray, n: int) -> list[Furniture]:
    """Up to n things that do not touch; a colour and kind occur together at most once: a name means one thing."""
    names = [(color, kind) for kind in KINDS for color in COLORS]
    placed: list[Furniture] = []
    for index in rng.permutation(len(names))[: 3 * n]:
        if len(placed) == n:
            break
        color, kind = names[index]
        known = KINDS[kind]
        box = np.array(known["size"]) * rng.uniform(0.85, 1.15, 3)
        for _ in range(12):
            center, yaw = _spot(rng, size, box, known["at_wall"])
            if all(_apart(center, box, yaw, other.scene_object) for other in placed):
                thing = SceneObject(len(placed), f"{color} {kind}", np.array([*center, box[2] / 2]), box, yaw)
                placed.append(Furniture(thing, _parts(thing, COLORS[color], known["shapes"])))
                break
    return placed


def alone(rng: np.random.Generator, color: str, kind: str, kinds: Mapping[str, Any] = KINDS) -> Furniture:
    """One piece in the middle of the floor, at any angle."""
    box = np.array(kinds[kind]["size"]) * rng.uniform(0.85, 1.15, 3)
    center = np.array([0.0, 0.0, box[2] / 2])
    thing = SceneObject(0, f"{color} {kind}", center, box, float(rng.uniform(-np.pi, np.pi)))
    return Furniture(thing, _parts(thing, COLORS[color], kinds[kind]["shapes"]))


def _spot(rng: np.random.Generator, size: np.ndarray, box: np.ndarray, at_wall: bool) -> tuple[np.ndarray, float]:
    """Level centre and yaw: back against a random wall, or anywhere at any angle."""
    if not at_wall:
        reach = float(np.linalg.norm(box[:2])) / 2 + 0.05
        return rng.uniform(-1, 1, 2) * (size / 2 - reach), float(rng.uniform(-np.pi, np.pi))
    yaw = float(rng.integers(4)) * np.pi / 2
    turned = np.abs(_turn(yaw) @ np.diag(box[:2])).sum(axis=1)
    back = _turn(yaw) @ np.array([0.0, 1.0])
    along = rng.uniform(-1, 1, 2) * (size / 2 - turned / 2 - 0.05)
    against = back * (size / 2 - turned / 2 - 0.02)
    return np.where(np.abs(back) > 0.5, against, along), yaw


def _apart(center: np.ndarray, box: np.ndarray, yaw: float, other: SceneObject) -> bool:
    """Bounding circles of small things, boxes by their corners and edge middles for long ones."""
    gap = 0.1
    if np.linalg.norm(center - other.center[:2]) > (np.linalg.norm(box[:2]) + np.linalg.norm(other.size[:2])) / 2 + gap:
        return True
    steps = np.linspace(-0.5, 0.5, 5)
    grid = np.array([(a, b) for a in steps for b in steps])
    mine = center + (grid * box[:2]) @ _turn(yaw).T
    theirs = other.center[:2] + (grid * other.size[:2]) @ _turn(other.yaw).T
    into_theirs = np.abs((mine - other.center[:2]) @ _turn(other.yaw)) < other.size[:2] / 2 + gap
    into_mine = np.abs((theirs - center) @ _turn(yaw)) < box[:2] / 2 + gap
    return not (into_theirs.all(axis=1).any() or into_mine.all(axis=1).any())


def _parts(thing: SceneObject, color: list[float], shapes: list[list[Any]]) -> list[Part]:
    turn = _turn(thing.yaw)
    parts = []
    for primitive, center, size, brightness in shapes:
        vertices, faces = _primitive(primitive)
        world = (vertices * size + center) * thing.size
        world[:, :2] = world[:, :2] @ turn.T + thing.center[:2]
        base = COLORS["green"] if brightness < 0 else color
        red, green, blue = (min(1.0, channel * abs(brightness)) for channel in base)
        parts.append(Part(world, faces, (red, green, blue), thing.id, turn.T))
    return parts
