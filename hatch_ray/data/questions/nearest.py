"""Which thing is nearest or farthest: distance_infer_center_oo (from a thing) and _oc (from the observer)."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, phrase, task
from hatch_ray.data.questions.targets import CENTERS, ask, box_text, centers, ending, several_targets
from hatch_ray.data.visibility import Target

COLOR_HINT = " Answer green, blue or equal."
MORE, MOST = ("closer to", "farther from"), ("closest to", "farthest from")
ORDINALS = ("first", "second", "third")
BOX_HINT = " Answer with an image that shows it and its box there, as: the second image, [x1,y1,x2,y2]."

CLEAR_GAP_M, CLEAR_GAP_SHARE = 0.2, 0.1
"""Two distances differ when they do so by both: metres, and share of the larger one."""
EQUAL_GAP_M = 0.05
MOST_LISTED = 4


def check_different(a: float, b: float) -> None:
    """Raise Refused unless two distances in metres are far enough apart to be asked about."""
    if abs(a - b) < max(CLEAR_GAP_M, CLEAR_GAP_SHARE * max(a, b)):
        raise Refused("distances_too_alike")


@task("distance_infer_center_oo", views=1, form="text")
@task("distance_infer_center_oo_mv", views=3, form="text")
def nearer_thing(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Whether green or blue is closer to (farther from) red, or both as far: the colour, the name in parentheses.

    The distances differ by 0.2 m and 10 %, or are equal within 0.05 m. Marks stand in SPAR's order red, green, blue.
    """
    red, green, blue = several_targets(views, rng, 3, "point")
    to_green, to_blue = (float(np.linalg.norm(target.center - red.center)) for target in (green, blue))
    farther = bool(rng.integers(2))
    equal = abs(to_green - to_blue) < EQUAL_GAP_M
    if not equal:
        check_different(to_green, to_blue)
    answers = [
        f"{color} ({thing.name})" if thing.name else color for color, thing in (("green", green), ("blue", blue))
    ]
    answers.append("equal")
    right = answers.pop(2 if equal else int((to_blue > to_green) == farther))
    return ask(
        "nearest_oo", views, rng, {"red": red, "green": green, "blue": blue}, right,
        {"green": to_green, "blue": to_blue, "farther": farther}, "point", COLOR_HINT + ending(red),
        tuple(answers), COLOR_HINT, more=MORE[farther],
    )  # fmt: skip


@task("distance_infer_center_oc", views=1, form="text", needs_objects=True)
@task("distance_infer_center_oc_mv", views=3, form="text", needs_objects=True)
def nearest_to_observer(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Which of two to four named objects is closest to (farthest from) the first camera; nothing is marked.

    Over several images the answer is the image and the object's box there, the name in parentheses; in one image it is
    the name. The two nearest (farthest) differ by 0.2 m and 10 %, and no name occurs twice.
    """
    things = several_targets(views, rng, MOST_LISTED, "none", fewest=2)
    if len({thing.name for thing in things}) < len(things):
        raise Refused("name_occurs_twice")
    distances = {thing.name: float(np.linalg.norm(thing.center - views.frames[0].pose[:3, 3])) for thing in things}
    farthest = bool(rng.integers(2))
    right, second, *_ = sorted(things, key=lambda thing: distances[thing.name], reverse=farthest)
    check_different(distances[right.name], distances[second.name])
    several = len(views) > 1
    hint = BOX_HINT if several else ""
    listed = [f"the {thing.name}" + f" ({ORDINALS[thing.view]} image)" * several for thing in things]
    text = phrase(
        "nearest_oc", rng, most=MOST[farthest], first="first " * several,
        things=f"{', '.join(listed[:-1])} or {listed[-1]}",
    )  # fmt: skip
    answers = {thing.object_id: _place_text(thing) if several else thing.name for thing in things}
    gold = {"distances": distances, "farthest": farthest, "object": right.object_id, "points": centers(things)}
    answer = answers.pop(right.object_id)
    return Question(text + hint + CENTERS, answer, gold, (), tuple(answers.values()), hint)


def _place_text(target: Target) -> str:
    assert target.box is not None
    return f"the {ORDINALS[target.view]} image, {box_text(target.box)} ({target.name})"
