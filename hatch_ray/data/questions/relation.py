"""Where a thing is, in words: obj_spatial_relation, for the observer (oc) and against another thing (oo)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.choices import N_WRONG, lettered
from hatch_ray.data.questions.registry import Question, task
from hatch_ray.data.questions.targets import ask, one_target, several_targets
from hatch_ray.data.visibility import Target, to_camera
from hatch_ray.sample import MarkColor

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


def ask_where(
    template: str, views: ViewTuple, rng: np.random.Generator, things: Mapping[MarkColor, Target],
    offset: tuple[float, float, float], distance: float, axes: Axes,
) -> Question:  # fmt: skip
    """A choice among words for an offset. A slot is empty below max(0.1 m, 5 % of the distance).

    Wrong options flip one or two slots, so one slot gives two options, more give four.
    Raises Refused when every slot is empty.
    """
    words = relation_words(np.array(offset), max(MIN_GAP_M, MIN_GAP_SHARE * distance), axes)
    if not words:
        raise Refused("no_clear_relation")
    slots = [chosen for size in (1, 2) for chosen in combinations(range(len(words)), size)]
    wrong = [flip(words, slots[index]) for index in rng.permutation(len(slots))[:N_WRONG]]
    listed, letter = lettered([", ".join(option) for option in (words, *wrong)], rng)
    parts = {axis[0]: None if np.isnan(value) else float(value) for axis, value in zip(axes, offset, strict=True)}
    return ask(template, views, rng, things, letter, {"relation": list(words)} | parts, "box", f" {listed}")


def height(step: np.ndarray, up: np.ndarray | None) -> float:
    """How far a world step (3,) goes up; NaN where up is unknown."""
    return float(step @ up) if up is not None else np.nan


@task("obj_spatial_relation_oc_mv", views=3, form="letter")
def spatial_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Left or right and front or behind in the first camera's axes, above or below by world up; one letter.

    The thing is marked in another view where possible.
    """
    red = one_target(views, rng)
    pose = views.frames[0].pose
    right, _, forward = to_camera(pose, red.center)
    step = red.center - pose[:3, 3]
    offset = (right, height(step, views.scene.up), forward)
    return ask_where("spatial_relation_oc", views, rng, {"red": red}, offset, float(np.linalg.norm(step)), PLACE)


@task("obj_spatial_relation_oo", views=1, form="letter")
@task("obj_spatial_relation_oo_mv", views=3, form="letter")
def thing_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Blue against red: left or right in the first camera's axes, above or below by world up, and which is farther.

    The threshold goes by the larger of their distances to the first camera.
    """
    red, blue = several_targets(views, rng, 2, "box")
    pose = views.frames[0].pose
    right = to_camera(pose, blue.center)[0] - to_camera(pose, red.center)[0]
    near, far = (float(np.linalg.norm(thing.center - pose[:3, 3])) for thing in (red, blue))
    offset = (right, height(blue.center - red.center, views.scene.up), far - near)
    return ask_where("spatial_relation_oo", views, rng, {"red": red, "blue": blue}, offset, max(near, far), COMPARED)
