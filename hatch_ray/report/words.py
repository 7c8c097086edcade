"""Actions in plain words, for pages and terminals."""

from __future__ import annotations

from collections.abc import Sequence

from hatch_ray.sample import Atom

VERBS = {
    "turn_left_deg": "turn left",
    "turn_right_deg": "turn right",
    "turn_up_deg": "tilt up",
    "turn_down_deg": "tilt down",
    "move_forward_m": "go forward",
    "move_up_m": "go up",
    "move_down_m": "go down",
}


def atoms_in_words(atoms: Sequence[Atom]) -> list[str]:
    """[("turn_right_deg", 30.0), ...] -> ["turn right 30°", ...]; an empty list is ["stay"]."""
    words = []
    for name, value in atoms:
        verb = VERBS.get(name, name)
        words.append(f"{verb} {value:g}°" if name.endswith("_deg") else f"{verb} {value:.1f} m")
    return words or ["stay"]
