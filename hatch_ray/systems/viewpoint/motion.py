"""How the camera moved between two photos: to the side, turned, and around the object; unclear pairs are refused.

All signs follow from one frame: with f the optical axis without its part along up, normalised, r = f x up points to the
camera's right. Lengths are told in units of a distance, so that no scale and no metre is needed.

    dphi     atan2(u . (a_1 x a_2), a_1 . a_2), a = place - centre without its part along up; plus: counter-clockwise
             seen from above, which is to the right for a camera that looks at the centre
    lateral  r_1 . (c_2 - c_1) / unit; plus: right
    yaw      -atan2(u . (f_1 x f_2), f_1 . f_2); plus: right
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hatch_ray.data.pairs import Refused

Mode = Literal["orbit", "free"]
"""orbit: the camera goes around an object that it keeps in view, so it turns against its way, and the three answers
are one bit. free: any two views of a place; going and turning are independent, two bits."""

DPHI_DEG = (20.0, 100.0)
MIN_LATERAL = 0.15
MIN_YAW_DEG = 10.0
MAX_CLIMB = 0.5
MAX_ELEVATION_DEG = 70.0
MAX_ROLL_DEG = 30.0


@dataclass(frozen=True)
class Motion:
    """From the first photo to the second. Right is plus; degrees, and lengths in units.

    dphi_deg  around the centre, in orbit mode; None where there is no centre.
    climb     how much higher the second camera stands.
    """

    lateral: float
    yaw_deg: float
    climb: float
    dphi_deg: float | None = None


def orbit_motion(first: np.ndarray, second: np.ndarray, centre: np.ndarray, up: np.ndarray) -> Motion:
    """The motion about a centre; lengths in units of the first camera's distance to it.

    first, second (4, 4) camera-to-world, OpenCV axes; centre (3,); up (3,) unit. Raises Refused
    "camera_at_the_centre", "no_heading".
    """
    arms = [pose[:3, 3] - centre for pose in (first, second)]
    unit = float(np.linalg.norm(arms[0]))
    levels = [_level(arm, up) for arm in arms]
    if min(np.linalg.norm(level) for level in levels) < 1e-6 * max(unit, 1e-12):
        raise Refused("camera_at_the_centre")
    found = motion(first, second, up, unit)
    return Motion(found.lateral, found.yaw_deg, found.climb, _turn_deg(levels[0], levels[1], up))


def motion(first: np.ndarray, second: np.ndarray, up: np.ndarray, unit: float) -> Motion:
    """The motion in units of any length. Raises Refused "no_heading": a camera looks straight up or down."""
    ahead = [_level(pose[:3, 2], up) for pose in (first, second)]
    lengths = [float(np.linalg.norm(level)) for level in ahead]
    if min(lengths) < 1e-3:
        raise Refused("no_heading")
    step = second[:3, 3] - first[:3, 3]
    aside = _triple(ahead[0], up, step) / lengths[0]
    return Motion(aside / unit, -_turn_deg(ahead[0], ahead[1], up), float(up @ step) / unit)


def clear_orbit(first: np.ndarray, second: np.ndarray, centre: np.ndarray, up: np.ndarray) -> Motion:
    """`orbit_motion` of a pair that gives questions in either order.

    Raises Refused: "rolled", "too_steep", "angle_out_of_range", "hardly_sideways", "hardly_turned",
    "other_height", "not_an_orbit", "side_unclear", and those of `orbit_motion`.
    """
    check_frame(first, up)
    check_frame(second, up)
    for pose in (first, second):
        arm = pose[:3, 3] - centre
        if abs(up @ arm) > np.sin(np.radians(MAX_ELEVATION_DEG)) * np.linalg.norm(arm):
            raise Refused("too_steep")
    there, back = orbit_motion(first, second, centre, up), orbit_motion(second, first, centre, up)
    assert there.dphi_deg is not None
    if not DPHI_DEG[0] <= abs(there.dphi_deg) <= DPHI_DEG[1]:
        raise Refused("angle_out_of_range")
    _check_clear(there, back)
    if there.lateral * there.yaw_deg > 0:
        raise Refused("not_an_orbit")
    return there


def clear_free(first: np.ndarray, second: np.ndarray, up: np.ndarray, units: tuple[float, float]) -> Motion:
    """`motion` of a pair that gives questions in either order; units: how far each camera sees (median depth).

    Raises Refused: as `clear_orbit`, without those about an orbit.
    """
    check_frame(first, up)
    check_frame(second, up)
    there, back = motion(first, second, up, units[0]), motion(second, first, up, units[1])
    _check_clear(there, back)
    return there


def check_frame(pose: np.ndarray, up: np.ndarray) -> None:
    """Raise Refused "rolled" where the photo's left and right are not the world's, "too_steep" where it looks down."""
    if abs(pose[:3, 0] @ up) > np.sin(np.radians(MAX_ROLL_DEG)) or pose[:3, 1] @ up > 0:
        raise Refused("rolled")
    if abs(pose[:3, 2] @ up) > np.sin(np.radians(MAX_ELEVATION_DEG)):
        raise Refused("too_steep")


def _check_clear(there: Motion, back: Motion) -> None:
    """Both orders must say the same: a camera that goes ahead and turns may have gone right by one photo only."""
    if min(abs(there.lateral), abs(back.lateral)) < MIN_LATERAL:
        raise Refused("hardly_sideways")
    if abs(there.yaw_deg) < MIN_YAW_DEG:
        raise Refused("hardly_turned")
    if max(abs(there.climb), abs(back.climb)) >= MAX_CLIMB:
        raise Refused("other_height")
    if there.lateral * back.lateral > 0:
        raise Refused("side_unclear")


def _level(vector: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.asarray(vector - (vector @ up) * up)


def _turn_deg(first: np.ndarray, second: np.ndarray, up: np.ndarray) -> float:
    """Degrees about up from one level vector to another, counter-clockwise seen from above."""
    return math.degrees(math.atan2(_triple(first, second, up), float(first @ second)))


def _triple(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """(a x b) . c; ten times as fast as np.cross for three numbers."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = a.tolist(), b.tolist(), c.tolist()
    return float((ay * bz - az * by) * cx + (az * bx - ax * bz) * cy + (ax * by - ay * bx) * cz)
