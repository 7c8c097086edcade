"""Thoughts written from geometry: what a reader of the two photos could say before the answer (hybrid cold start).

The wording is drawn at random; the only numbers are angles, rounded to tens.
"""

from __future__ import annotations

import numpy as np

from hatch_ray.systems.viewpoint.motion import Mode, Motion
from hatch_ray.systems.viewpoint.questions import OPPOSITE, TURNS, Asked, side

ORBIT = (
    "The second photo shows the object from about {around} degrees further to the {went}.",
    "The second photo shows more of the side that lay to the {went} in the first, by about {around} degrees.",
    "Taking the first photo's side as the front, the second is taken about {around} degrees to the {went} of it.",
)
STAYS = (
    "Without a turn it would have left towards the {came}, yet it stays in the picture: the camera turned {turned}.",
    "Moving {went} alone would push it to the {came}; it is still there, so the camera turned {turned}.",
)
FREE_TURN = (
    "What is in the middle of the first photo goes to the {shown} in the second: the camera turned {turned} by about "
    "{angle} degrees.",
    "The second photo shows more of what is {turned} of the first, by about {angle} degrees: it turned {turned}.",
)
FREE_MOVE = (
    "Near things shift to the {came} against far ones, so the camera moved {went}.",
    "Against what is far, what is near goes {came}: the camera's place moved {went}.",
)
MOVED = ("So the camera moved {went}.", "The camera's place moved {went}.")
OBJECT = (
    "The object faces the first camera, so its sides are the other way round: {seen}.",
    "Seen from the object, looking at the first camera, that is {seen}.",
)
LAST = ("That is {answer}.", "So the answer is {answer}.")


def think(name: str, motion: Motion, mode: Mode, asked: Asked, rng: np.random.Generator) -> str:
    """The thought that leads to the answer of a question of this type; it ends with the answer."""
    went, turned = side("ego_translation", motion), side("ego_rotation", motion)
    words = {
        "went": went,
        "came": OPPOSITE[went],
        "turned": turned,
        "shown": OPPOSITE[turned],
        "seen": OPPOSITE[went],
        "angle": tens(motion.yaw_deg),
        "around": tens(motion.dphi_deg or 0.0),
        "answer": asked.answer,
    }
    turns = name in TURNS
    if mode == "orbit":
        parts = [ORBIT, STAYS if turns else MOVED]
    else:
        parts = [FREE_TURN if turns else FREE_MOVE]
    if name == "object_translation":
        parts.append(OBJECT)
    return " ".join(part[int(rng.integers(len(part)))].format(**words) for part in [*parts, LAST])


def tens(degrees: float) -> int:
    """An angle without its side, as a reader would put it."""
    return max(10, 10 * round(abs(degrees) / 10))
