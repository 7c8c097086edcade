"""Which thing is nearest or farthest: distance_infer_center_oo (from a thing) and _oc (from the observer)."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.targets import CENTERS, box_text, named, point_mark, several_targets
from hatch_ray.data.visibility import Target

FROM_THING = (
    "Which is {more} the {red}: the {green} or the {blue}?",
    "Is the {green} or the {blue} {more} the {red}?",
    "Compare the {green} and the {blue}: which is {more} the {red}?",
)
COLOR_HINT = " Answer green, blue or equal."
MORE = ("closer to", "farther from")
FROM_OBSERVER = (
    "Which of these is {most} the observer of the {first}image: {things}?",
    "The observer stands at the camera of the {first}image. Which is {most} it: {things}?",
    "Of {things}, which is {most} the camera of the {first}image?",
)
MOST = ("closest to", "farthest from")
ORDINALS = ("first", "second", "third")
BOX_HINT = " Answer with an image that shows it and its box there, as: the second image, [x1,y1,x2,y2]."

CLEAR_GAP_M, CLEAR_GAP_SHARE = 0.2, 0.1
"""Two distances differ when they do so by both: metres, and share of the larger one."""
EQUAL_GAP_M = 0.05
MOST_LISTED = 4


def clearly_different(a: float, b: float) -> bool:
    """Whether two distances in metres are far enough apart to be asked about."""
    return abs(a - b) >= max(CLEAR_GAP_M, CLEAR_GAP_SHARE * max(a, b))


@task("distance_infer_center_oo", views=1, form="text")
@task("distance_infer_center_oo_mv", views=3, form="text")
def nearer_thing(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Whether green or blue is closer to (farther from) red, or both as far: the colour, the name in parentheses.

    The distances differ by 0.2 m and 10 %, or are equal within 0.05 m. Marks stand in SPAR's order red, green, blue.
    """
    red, green, blue = several_targets(views, rng, 3, "point")
    distances = [float(np.linalg.norm(target.center - red.center)) for target in (green, blue)]
    farther = bool(rng.integers(2))
    equal = abs(distances[0] - distances[1]) < EQUAL_GAP_M
    if not equal and not clearly_different(*distances):
        raise Refused("distances_too_alike")
    answers = [_color_text("green", green), _color_text("blue", blue), "equal"]
    right = answers[2 if equal else int((distances[1] > distances[0]) == farther)]
    text = pick(FROM_THING, rng).format(
        more=MORE[farther],
        red=named(views, red, "red"),
        green=named(views, green, "green"),
        blue=named(views, blue, "blue"),
    )
    return Question(
        text + COLOR_HINT + (CENTERS if red.name else ""),
        right,
        {
            "green": distances[0],
            "blue": distances[1],
            "farther": farther,
            "points": [target.center.tolist() for target in (red, green, blue)],
        },
        (point_mark(red, "red"), point_mark(green, "green"), point_mark(blue, "blue")),
        tuple(answer for answer in answers if answer != right),
        COLOR_HINT,
    )


def _color_text(color: str, target: Target) -> str:
    return f"{color} ({target.name})" if target.name else color


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
    place = views.frames[0].pose[:3, 3]
    distances = [float(np.linalg.norm(thing.center - place)) for thing in things]
    farthest = bool(rng.integers(2))
    order = np.argsort(distances)[:: -1 if farthest else 1]
    if not clearly_different(distances[order[0]], distances[order[1]]):
        raise Refused("distances_too_alike")
    several = len(views) > 1
    listed = [
        f"the {thing.name} ({ORDINALS[thing.view]} image)" if several else f"the {thing.name}" for thing in things
    ]
    text = pick(FROM_OBSERVER, rng).format(
        most=MOST[farthest], first="first " if several else "", things=f"{', '.join(listed[:-1])} or {listed[-1]}"
    )
    answers = [_place_text(thing) if several else thing.name for thing in things]
    right = int(order[0])
    hint = BOX_HINT if several else ""
    return Question(
        text + hint + CENTERS,
        answers[right],
        {
            "distances": {thing.name: distance for thing, distance in zip(things, distances, strict=True)},
            "farthest": farthest,
            "object": things[right].object_id,
            "points": [thing.center.tolist() for thing in things],
        },
        (),
        tuple(answer for index, answer in enumerate(answers) if index != right),
        hint,
    )


def _place_text(target: Target) -> str:
    assert target.box is not None
    return f"the {ORDINALS[target.view]} image, {box_text(target.box)} ({target.name})"
