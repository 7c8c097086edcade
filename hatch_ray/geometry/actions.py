"""Action lists and camera motion: the teacher's decomposition and the forward kinematics that judge every list.

The vocabulary is the paper's appendix B.3. It has no roll, so a list cannot in general reach the true rotation; where
world up is known the list is composed in a gravity-aligned state (heading, pitch, position; roll held at the first
camera's), which loses the roll difference and nothing else. Where up is unknown, each atom acts in the camera's own
frame. Gold and prediction always go through the same `compose`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.geometry.se3 import pitch_roll, relative
from hatch_ray.sample import ActionFrame, Atom

ATOMS = (
    "turn_left_deg",
    "turn_right_deg",
    "turn_up_deg",
    "turn_down_deg",
    "move_forward_m",
    "move_up_m",
    "move_down_m",
)
MAX_ATOMS = 12
MAX_DEGREES = 360.0
MAX_METRES = 20.0

STEEP_DEG = 60.0
"""Above this elevation of the target place the teacher moves level, then up or down: aiming would lose the heading."""
NEAR_M = 0.05
"""A shorter move than this is left out, and with it the turn that would aim at it."""


def check_atoms(atoms: Sequence[Atom]) -> None:
    """Raise ValueError unless every atom is known, finite, non-negative and inside the plan limits."""
    if len(atoms) > MAX_ATOMS:
        raise ValueError(f"{len(atoms)} steps for one pair, at most {MAX_ATOMS}")
    for name, value in atoms:
        if name not in ATOMS:
            raise ValueError(f"unknown action {name!r}")
        limit = MAX_DEGREES if name.endswith("_deg") else MAX_METRES
        if not 0 <= value <= limit:
            raise ValueError(f"{name} must lie in 0 to {limit:g}, got {value}")


Motion = tuple[np.ndarray, np.ndarray]
"""Rotation (3, 3) and translation (3,): x_start = R x_end + t."""


def _turn(yaw_deg: float = 0.0, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> np.ndarray:
    """Ry(yaw) Rx(pitch) Rz(roll), (3, 3): right, up and right-side-down are positive."""
    cy, sy = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    cp, sp = math.cos(math.radians(pitch_deg)), math.sin(math.radians(pitch_deg))
    cr, sr = math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))
    return np.array([
        [cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp],
        [cp * sr, cp * cr, -sp],
        [cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp],
    ])  # fmt: skip


def motion(atoms: Sequence[Atom], frame: ActionFrame | None) -> Motion:
    """Forward kinematics: the end camera in the start camera's frame (appendix C.2), as plain arrays.

    Every reward goes through here, three pairs a reply: scipy's checks would take ten times as long as the products.
    frame: the start camera's pitch and roll where up is known, else None. Raises ValueError on invalid atoms.
    """
    check_atoms(atoms)
    if frame is None:
        return _motion_in_body(atoms)
    heading, pitch, position = 0.0, frame.pitch_deg, np.zeros(3)
    for name, value in atoms:
        match name:
            case "turn_right_deg":
                heading += value
            case "turn_left_deg":
                heading -= value
            case "turn_up_deg":
                pitch += value
            case "turn_down_deg":
                pitch -= value
            case "move_forward_m":
                position = position + value * _turn(heading, pitch)[:, 2]
            case "move_up_m":
                position[1] -= value
            case "move_down_m":
                position[1] += value
    to_start = _turn(0.0, frame.pitch_deg, frame.roll_deg).T
    return to_start @ _turn(heading, pitch, frame.roll_deg), to_start @ position


def _motion_in_body(atoms: Sequence[Atom]) -> Motion:
    """Each atom acts in the current body frame: R <- R dR, t <- t + R dt."""
    rotation, position = np.eye(3), np.zeros(3)
    for name, value in atoms:
        match name:
            case "turn_right_deg":
                rotation = rotation @ _turn(value)
            case "turn_left_deg":
                rotation = rotation @ _turn(-value)
            case "turn_up_deg":
                rotation = rotation @ _turn(0, value)
            case "turn_down_deg":
                rotation = rotation @ _turn(0, -value)
            case "move_forward_m":
                position = position + value * rotation[:, 2]
            case "move_up_m":
                position = position - value * rotation[:, 1]
            case "move_down_m":
                position = position + value * rotation[:, 1]
    return rotation, position


def compose(atoms: Sequence[Atom], frame: ActionFrame | None) -> RigidTransform:
    """`motion` as a transform. Raises ValueError on invalid atoms."""
    rotation, position = motion(atoms, frame)
    return RigidTransform.from_components(position, Rotation.from_matrix(rotation))


def _bearing_elevation(direction: np.ndarray) -> tuple[float, float]:
    """Degrees to the right of and above the z axis."""
    x, y, z = direction
    return float(np.degrees(np.arctan2(x, z))), float(np.degrees(np.arctan2(-y, np.hypot(x, z))))


def _signed(name_plus: str, name_minus: str, value: float) -> Atom:
    return (name_plus, value) if value >= 0 else (name_minus, -value)


def _wrap(degrees: float) -> float:
    """Into (-180, 180]."""
    return -((180.0 - degrees) % 360.0 - 180.0)


def decompose(
    pose_i: RigidTransform, pose_j: RigidTransform, up: np.ndarray | None
) -> tuple[list[Atom], ActionFrame | None]:
    """The exact teacher list (appendix B.3): aim at the target place, move there, aim at the target's direction.

    Composing it gives camera j's position exactly, and its rotation but for the roll that the vocabulary lacks.
    A camera that looks straight up or down has no heading: its list is composed without a frame.
    """
    frame: ActionFrame | None = None
    if up is not None:
        up = np.asarray(up, dtype=float) / np.linalg.norm(up)
        try:
            frame = ActionFrame(*pitch_roll(pose_i.rotation, up))
        except ValueError:
            frame = None
    step = relative(pose_i, pose_j)
    start = _turn(0, frame.pitch_deg, frame.roll_deg) if frame else np.eye(3)
    place, forward = start @ step.translation, start @ step.rotation.as_matrix()[:, 2]
    pitch = frame.pitch_deg if frame else 0.0
    distance = float(np.linalg.norm(place))
    bearing, elevation = _bearing_elevation(place)
    atoms: list[Atom] = []
    facing = (0.0, pitch)
    if distance >= NEAR_M and (frame is None or abs(elevation) <= STEEP_DEG):
        atoms += _aim((0.0, pitch), (bearing, elevation))
        atoms.append(("move_forward_m", distance))
        facing = (bearing, elevation)
    elif distance >= NEAR_M:
        level = float(np.hypot(place[0], place[2]))
        if level >= NEAR_M:
            atoms += _aim((0.0, pitch), (bearing, 0.0))
            atoms.append(("move_forward_m", level))
            facing = (bearing, 0.0)
        atoms.append(_signed("move_up_m", "move_down_m", -place[1]))
    if frame is None:
        # In the body frame a second aim starts from the turned camera, not from the horizon.
        forward = _turn(*facing).T @ forward
        facing = (0.0, 0.0)
    atoms += _aim(facing, _bearing_elevation(forward))
    return atoms, frame


def _aim(facing: tuple[float, float], target: tuple[float, float]) -> list[Atom]:
    """Turn from one (heading, pitch) to another: yaw first, then pitch."""
    return [
        _signed("turn_right_deg", "turn_left_deg", _wrap(target[0] - facing[0])),
        _signed("turn_up_deg", "turn_down_deg", target[1] - facing[1]),
    ]


def round_atoms(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """SPAR's resolution: whole degrees, 0.1 m; steps that round to nothing are left out."""
    rounded = [(name, round(value) if name.endswith("_deg") else round(value, 1)) for name, value in atoms]
    return tuple((name, float(value)) for name, value in rounded if value > 0)


def plan_between(
    pose_i: RigidTransform, pose_j: RigidTransform, up: np.ndarray | None
) -> tuple[tuple[Atom, ...], ActionFrame | None, float]:
    """The gold list for a pair: (rounded atoms, frame, residual).

    residual: degrees between the exact list's end rotation and the true one (the roll difference).
    """
    atoms, frame = decompose(pose_i, pose_j, up)
    end = compose([atom for atom in atoms if atom[1] > 0], frame)
    residual = (end.rotation.inv() * relative(pose_i, pose_j).rotation).magnitude()
    return round_atoms(atoms), frame, float(np.degrees(residual))
