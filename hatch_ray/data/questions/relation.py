"""Where a thing is, in words: obj_spatial_relation, for the observer (oc) and against another thing (oo)."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.choices import N_WRONG, lettered
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.targets import boxed, one_target, several_targets
from hatch_ray.data.visibility import to_camera

OF_OBSERVER = (
    "Seen from the camera of image 0, where is the {red}?",
    "Where is the {red} for the observer of image 0?",
    "You stand at the camera of image 0. Where is the {red}?",
)
OF_THING = (
    "Seen from the camera of image 0, where is the {blue} relative to the {red}?",
    "For the observer of image 0, where is the {blue} compared with the {red}?",
    "You stand at the camera of image 0. Where is the {blue}, starting from the {red}?",
)
Axes = tuple[tuple[str, str], ...]
PLACE: Axes = (("right", "left"), ("above", "below"), ("front", "behind"))
"""Words for positive and negative offsets along right, up and forward."""
COMPARED: Axes = (*PLACE[:2], ("farther", "closer"))
"""The third offset is the difference of the distances to the observer."""
MIN_GAP_M = 0.1
MIN_GAP_SHARE = 0.05


def relation_words(offset: np.ndarray, gap: float, axes: Axes = PLACE) -> tuple[str, ...]:
    """An offset (3,) in metres in words; a part below the gap, or NaN (up unknown), is left out."""
    return tuple(
        axis[0] if value > 0 else axis[1] for axis, value in zip(axes, offset, strict=True) if abs(value) >= gap
    )


def flip(words: tuple[str, ...], slots: tuple[int, ...]) -> tuple[str, ...]:
    """The same words with some of them turned into their opposites."""
    opposite = {a: b for pair in (*PLACE, COMPARED[2]) for a, b in (pair, pair[::-1])}
    return tuple(opposite[word] if slot in slots else word for slot, word in enumerate(words))


def relation_choice(
    offset: np.ndarray, distance: float, axes: Axes, rng: np.random.Generator
) -> tuple[tuple[str, ...], str, str]:
    """(words, listed options, letter) of an offset. A slot is empty below max(0.1 m, 5 % of the distance).

    Wrong options flip one or two slots, so one slot gives two options, more give four.
    Raises Refused when every slot is empty.
    """
    words = relation_words(offset, max(MIN_GAP_M, MIN_GAP_SHARE * distance), axes)
    if not words:
        raise Refused("no_clear_relation")
    slots = [chosen for size in (1, 2) for chosen in combinations(range(len(words)), size)]
    wrong = [flip(words, slots[index]) for index in rng.permutation(len(slots))[:N_WRONG]]
    listed, letter = lettered([", ".join(option) for option in (words, *wrong)], rng)
    return words, listed, letter


def height(step: np.ndarray, up: np.ndarray | None) -> float:
    """How far a world step (3,) goes up; NaN where up is unknown."""
    return float(step @ up) if up is not None else np.nan


def known(value: float) -> float | None:
    """NaN as None, for JSON."""
    return None if np.isnan(value) else value


@task("obj_spatial_relation_oc_mv", views=3, form="letter")
def spatial_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Left or right and front or behind in the first camera's axes, above or below by world up; one letter.

    The thing is marked in another view where possible.
    """
    red = one_target(views, rng)
    pose = views.frames[0].pose
    right, _, forward = to_camera(pose, red.center)
    step = red.center - pose[:3, 3]
    above = height(step, views.scene.up)
    words, listed, letter = relation_choice(np.array([right, above, forward]), float(np.linalg.norm(step)), PLACE, rng)
    names, marks = boxed(views, {"red": red})
    text = pick(OF_OBSERVER, rng).format(**names)
    return Question(
        f"{text} {listed}",
        letter,
        {
            "relation": list(words),
            "right": float(right),
            "above": known(above),
            "front": float(forward),
            "points": [red.center.tolist()],
        },
        marks,
    )


@task("obj_spatial_relation_oo", views=1, form="letter")
@task("obj_spatial_relation_oo_mv", views=3, form="letter")
def thing_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Blue against red: left or right in the first camera's axes, above or below by world up, and which is farther.

    The threshold goes by the larger of their distances to the first camera.
    """
    red, blue = several_targets(views, rng, 2, "box")
    pose = views.frames[0].pose
    right = float(to_camera(pose, blue.center)[0] - to_camera(pose, red.center)[0])
    above = height(blue.center - red.center, views.scene.up)
    distances = [float(np.linalg.norm(thing.center - pose[:3, 3])) for thing in (red, blue)]
    farther = distances[1] - distances[0]
    words, listed, letter = relation_choice(np.array([right, above, farther]), max(distances), COMPARED, rng)
    names, marks = boxed(views, {"red": red, "blue": blue})
    text = pick(OF_THING, rng).format(**names)
    return Question(
        f"{text} {listed}",
        letter,
        {
            "relation": list(words),
            "right": right,
            "above": known(above),
            "farther": farther,
            "points": [red.center.tolist(), blue.center.tolist()],
        },
        marks,
    )
