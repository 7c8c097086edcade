"""Where things would be from another place: spatial_imagination, and the map of spatial_imagination_map_mv."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.relation import COMPARED, PLACE, relation_choice
from hatch_ray.data.questions.targets import box_mark, boxed, several_targets

STANDING = (
    "Imagine standing at the {green}, facing the {blue}. ",
    "You go to the {green} and look towards the {blue}. ",
    "Your place is the {green}, your view is towards the {blue}. ",
)
WHERE = "Where is the {red}?"
WHERE_AGAINST = "Where is the {red} relative to the {yellow}?"
MAP = (
    "On a map with the observer of image 0 at [0,0], looking along +y, +x to the right: where are {things}? Metres.",
    "Draw a map seen from above, in metres: the observer of image 0 is at [0,0] and looks along +y. Give [x,y] of "
    "{things}.",
    "Give the places [x,y] in metres of {things}, seen from above; the observer of image 0 is at [0,0], x to the "
    "right, y ahead.",
)
MIN_FACING_M = 0.3
"""Level distance below which "facing" gives no direction."""
LABELLED = 3


def level_axes(direction: np.ndarray, up: np.ndarray | None, shortest: float) -> tuple[np.ndarray, np.ndarray]:
    """(right, forward) unit vectors in the level plane of one who faces a world direction (3,).

    Raises Refused when up is unknown or the level part of the direction is shorter than `shortest`.
    """
    if up is None:
        raise Refused("up_unknown")
    forward = direction - (direction @ up) * up
    length = float(np.linalg.norm(forward))
    if length < shortest:
        raise Refused("no_level_direction")
    forward /= length
    return np.cross(forward, up), forward


@task("spatial_imagination_oc", views=1, form="letter")
@task("spatial_imagination_oc_mv", views=3, form="letter")
def imagined_place(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Standing at green's centre and facing blue: where red is. Marks stand in SPAR's order green, blue, red."""
    green, blue, red = several_targets(views, rng, 3, "box")
    up = views.scene.up
    right, forward = level_axes(blue.center - green.center, up, MIN_FACING_M)
    step = red.center - green.center
    offset = np.array([step @ right, step @ up, step @ forward])
    words, listed, letter = relation_choice(offset, float(np.linalg.norm(step)), PLACE, rng)
    names, marks = boxed(views, {"green": green, "blue": blue, "red": red})
    text = (pick(STANDING, rng) + WHERE).format(**names)
    return Question(
        f"{text} {listed}",
        letter,
        {
            "relation": list(words),
            **dict(zip(("right", "above", "front"), offset.tolist(), strict=True)),
            "points": [thing.center.tolist() for thing in (green, blue, red)],
        },
        marks,
    )


@task("spatial_imagination_oo", views=1, form="letter")
@task("spatial_imagination_oo_mv", views=3, form="letter")
def imagined_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """The same viewpoint: where red is against yellow, and which is farther from green's centre.

    Marks stand in SPAR's order green, blue, red, yellow.
    """
    green, blue, red, yellow = several_targets(views, rng, 4, "box")
    up = views.scene.up
    right, _ = level_axes(blue.center - green.center, up, MIN_FACING_M)
    step = red.center - yellow.center
    distances = [float(np.linalg.norm(thing.center - green.center)) for thing in (yellow, red)]
    offset = np.array([step @ right, step @ up, distances[1] - distances[0]])
    words, listed, letter = relation_choice(offset, max(distances), COMPARED, rng)
    names, marks = boxed(views, {"green": green, "blue": blue, "red": red, "yellow": yellow})
    text = (pick(STANDING, rng) + WHERE_AGAINST).format(**names)
    return Question(
        f"{text} {listed}",
        letter,
        {
            "relation": list(words),
            **dict(zip(("right", "above", "farther"), offset.tolist(), strict=True)),
            "points": [thing.center.tolist() for thing in (green, blue, red, yellow)],
        },
        marks,
    )


@task("spatial_imagination_map_mv", views=3, form="text", formats=("sentence",), needs_objects=True)
def places_on_a_map(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Level coordinates of two or three labelled objects, the first observer at the origin and looking along +y.

    SPAR has it as a sentence only and the paper has no reward for it, so it is made only when it is asked for by name.
    """
    things = several_targets(views, rng, LABELLED, "box", fewest=2)
    pose = views.frames[0].pose
    right, forward = level_axes(pose[:3, 2], views.scene.up, MIN_FACING_M)
    steps = [thing.center - pose[:3, 3] for thing in things]
    places = [(float(step @ right), float(step @ forward)) for step in steps]
    # Square brackets, since the reward of texts leaves out what stands in round ones. Adding 0.0 makes -0.0 to 0.0.
    answer = ", ".join(f"object{k}: [{round(x, 1) + 0.0},{round(y, 1) + 0.0}]" for k, (x, y) in enumerate(places))
    labels = [f"object{index} ({thing.name}, image {thing.view})" for index, thing in enumerate(things)]
    text = pick(MAP, rng).format(things=f"{', '.join(labels[:-1])} and {labels[-1]}")
    marks = tuple(replace(box_mark(thing, "blue"), label=f"object{index}") for index, thing in enumerate(things))
    gold = {"places": [list(place) for place in places], "points": [thing.center.tolist() for thing in things]}
    return Question(text, answer, gold, marks)
