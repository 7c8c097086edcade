"""Where things would be from another place: spatial_imagination, and the map of spatial_imagination_map_mv."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, phrase, task
from hatch_ray.data.questions.relation import COMPARED, PLACE, ask_where
from hatch_ray.data.questions.targets import centers, mark_of, several_targets
from hatch_ray.data.visibility import Target
from hatch_ray.sample import MarkColor

MIN_FACING_M = 0.3
"""Level distance below which "facing" gives no direction."""
LABELLED = 3


def level_axes(direction: np.ndarray, up: np.ndarray | None) -> np.ndarray:
    """(3, 3) rows right, up and forward, the level axes of one who faces a world direction (3,).

    Raises Refused when up is unknown or the level part of the direction is shorter than 0.3 m.
    """
    if up is None:
        raise Refused("up_unknown")
    forward = direction - (direction @ up) * up
    length = float(np.linalg.norm(forward))
    if length < MIN_FACING_M:
        raise Refused("no_level_direction")
    forward /= length
    return np.stack([np.cross(forward, up), up, forward])


@task("spatial_imagination_oc", views=1, form="letter")
@task("spatial_imagination_oc_mv", views=3, form="letter")
def imagined_place(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Standing at green's centre and facing blue: where red is. Marks stand in SPAR's order green, blue, red."""
    green, blue, red = several_targets(views, rng, 3, "box")
    right, up, forward = level_axes(blue.center - green.center, views.scene.up)
    step = red.center - green.center
    things: dict[MarkColor, Target] = {"green": green, "blue": blue, "red": red}
    offset, distance = (step @ right, step @ up, step @ forward), float(np.linalg.norm(step))
    return ask_where("imagination_oc", views, rng, things, offset, distance, PLACE)


@task("spatial_imagination_oo", views=1, form="letter")
@task("spatial_imagination_oo_mv", views=3, form="letter")
def imagined_relation(views: ViewTuple, rng: np.random.Generator) -> Question:
    """The same viewpoint: where red is against yellow, and which is farther from green's centre.

    Marks stand in SPAR's order green, blue, red, yellow.
    """
    green, blue, red, yellow = several_targets(views, rng, 4, "box")
    right, up, _ = level_axes(blue.center - green.center, views.scene.up)
    step = red.center - yellow.center
    near, far = (float(np.linalg.norm(thing.center - green.center)) for thing in (yellow, red))
    things: dict[MarkColor, Target] = {"green": green, "blue": blue, "red": red, "yellow": yellow}
    offset = (step @ right, step @ up, far - near)
    return ask_where("imagination_oo", views, rng, things, offset, max(near, far), COMPARED)


@task("spatial_imagination_map_mv", views=3, form="text", formats=("sentence",), needs_objects=True)
def places_on_a_map(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Level coordinates of two or three labelled objects, the first observer at the origin and looking along +y.

    SPAR has it as a sentence only and the paper has no reward for it, so it is made only when it is asked for by name.
    """
    things = several_targets(views, rng, LABELLED, "box", fewest=2)
    pose = views.frames[0].pose
    right, _, forward = level_axes(pose[:3, 2], views.scene.up)
    steps = [thing.center - pose[:3, 3] for thing in things]
    places = [[float(step @ right), float(step @ forward)] for step in steps]
    # Square brackets, since the reward of texts leaves out what stands in round ones. Adding 0.0 makes -0.0 to 0.0.
    answer = ", ".join(f"object{k}: [{round(x, 1) + 0.0},{round(y, 1) + 0.0}]" for k, (x, y) in enumerate(places))
    labels = [f"object{index} ({thing.name}, image {thing.view})" for index, thing in enumerate(things)]
    text = phrase("map", rng, things=f"{', '.join(labels[:-1])} and {labels[-1]}")
    marks = tuple(replace(mark_of(thing, "blue", "box"), label=f"object{index}") for index, thing in enumerate(things))
    return Question(text, answer, {"places": places, "points": centers(things)}, marks)
