"""Camera actions of viewpoint (`reward.kind: actions`): which side a list of actions goes and turns to.

The list composes to the second camera's pose (`geometry.actions`), and what is asked is read from it as from the gold
poses (`motion`): by the same frame and the same signs. So both kinds of reward are judged by one measure, `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hatch_ray.data.pairs import Refused
from hatch_ray.geometry.actions import motion as composed
from hatch_ray.sample import ActionFrame, Atom
from hatch_ray.systems.viewpoint.motion import motion
from hatch_ray.systems.viewpoint.questions import OPPOSITE, TURNS, TYPES


def upright(frame: ActionFrame | None) -> np.ndarray:
    """(3,) unit, world up in the axes of a camera that stands so; where up is unknown, the photo's top."""
    if frame is None:
        return np.array([0.0, -1.0, 0.0])
    pitch, roll = np.radians([frame.pitch_deg, frame.roll_deg])
    return np.array([-np.cos(pitch) * np.sin(roll), -np.cos(pitch) * np.cos(roll), np.sin(pitch)])


def signed_by_actions(name: str, atoms: Sequence[Atom], frame: ActionFrame | None) -> float | None:
    """The signed number of a question type to which the actions come: metres or degrees, right is plus.

    None: 0, which is no side, or the camera ends looking straight up or down. Raises ValueError on invalid atoms.
    """
    second = np.eye(4)
    second[:3, :3], second[:3, 3] = composed(atoms, frame)
    try:
        found = TYPES[name].signed(motion(np.eye(4), second, upright(frame), 1.0))
    except Refused:
        return None
    return found if abs(found) > 1e-6 else None


def actions_to(name: str, side: str) -> tuple[Atom, ...]:
    """A plain list whose answer to this type is `side`: a turn, or a step aside with the eyes ahead."""
    if name in TURNS:
        return ((f"turn_{side}_deg", 40.0),)
    way = OPPOSITE[side] if name == "object_translation" else side
    return (f"turn_{way}_deg", 90.0), ("move_forward_m", 1.0), (f"turn_{OPPOSITE[way]}_deg", 90.0)
