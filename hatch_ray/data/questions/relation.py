"""Where a thing is, in words: obj_spatial_relation_oc_mv."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.targets import box_mark
from hatch_ray.data.visibility import to_camera

RELATION = (
    "Seen from the camera of image 0, where is the {red}?",
    "Where is the {red} for the observer of image 0?",
    "You stand at the camera of image 0. Where is the {red}?",
)
AXES = (("right", "left"), ("above", "below"), ("front", "behind"))
MIN_GAP_M = 0.1
MIN_GAP_SHARE = 0.05
LETTERS = "ABCD"


def relation_words(offset: np.ndarray, gap: float) -> tuple[str, ...]:
    """(right, up, forward) metres in words; a part below the gap, or NaN (up unknown), is left out."""
    return tuple(
        axis[0] if value > 0 else axis[1] for axis, value in zip(AXES, offset, strict=True) if abs(value) >= gap
    )


def flip(words: tuple[str, ...], slots: tuple[int, ...]) -> tuple[str, ...]:
    """The same words with some of them turned into their opposites."""
    opposite = {a: b for pair in AXES for a, b in (pair, pair[::-1])}
    return tuple(opposite[word] if slot in slots else word for slot, word in enumerate(words))


@task("obj_spatial_relation_oc_mv", views=3, form="letter")
def spatial_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Left or right and front or behind in the first camera's axes, above or below by world up; one letter.

    The thing is marked in another view where possible. A slot is empty below max(0.1 m, 5 % of the distance). Wrong
    options flip one or two slots, so one slot gives two options, more give four.
    """
    targets = views.targets(rng)
    targets = [target for target in targets if target.view > 0] or targets
    if not targets:
        raise Refused("no_visible_thing")
    red = targets[int(rng.integers(len(targets)))]
    pose = views.frames[0].pose
    right, _, forward = to_camera(pose, red.center)
    step = red.center - pose[:3, 3]
    above = float(step @ views.scene.up) if views.scene.up is not None else np.nan
    words = relation_words(
        np.array([right, above, forward]), max(MIN_GAP_M, MIN_GAP_SHARE * float(np.linalg.norm(step)))
    )
    if not words:
        raise Refused("no_clear_relation")
    slots = [chosen for size in (1, 2) for chosen in combinations(range(len(words)), size)]
    wrong = [flip(words, slots[index]) for index in rng.permutation(len(slots))[: len(LETTERS) - 1]]
    options = [words, *wrong]
    order = rng.permutation(len(options))
    listed = " ".join(f"{LETTERS[place]}. {', '.join(options[index])}" for place, index in enumerate(order))
    mark = box_mark(red, "red")
    text = pick(RELATION, rng).format(red=red.phrase("red bbox" if len(mark.xy) == 4 else "red point"))
    return Question(
        f"{text} {listed}",
        LETTERS[int(np.flatnonzero(order == 0)[0])],
        {
            "relation": list(words),
            "right": float(right),
            "above": None if np.isnan(above) else above,
            "front": float(forward),
            "points": [red.center.tolist()],
        },
        (mark,),
    )
