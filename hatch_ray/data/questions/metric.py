"""Questions with a number as answer: depths, distances and the volume of a box, in metres."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, task
from hatch_ray.data.questions.targets import ask, ending, one_target, several_targets, two_targets
from hatch_ray.data.visibility import Target, to_camera
from hatch_ray.sample import MarkColor

MIN_LENGTH_M = 0.3
MIN_VOLUME_M3 = 0.05
"""A smaller volume would lose too much in rounding to 0.01."""


def depth_in_own_image(views: ViewTuple, target: Target) -> float:
    """z of the target's centre in the camera of the view that marks it. Raises Refused where it is near."""
    depth = float(to_camera(views.frames[target.view].pose, target.center)[2])
    if depth < MIN_LENGTH_M:
        raise Refused("too_near")
    return depth


def ask_depth(
    name: str, views: ViewTuple, rng: np.random.Generator, things: Mapping[MarkColor, Target], gold: dict[str, float]
) -> Question:
    """The first of the golds is asked, the second, red's depth, is given."""
    answer, given = (f"{value:.1f}" for value in gold.values())
    template = name if len(views) > 1 else f"{name}_in_one"
    return ask(template, views, rng, things, answer, gold, "point", ending(things["red"]), depth=given)


def ask_distance(
    name: str, views: ViewTuple, rng: np.random.Generator, things: Mapping[MarkColor, Target], step: np.ndarray
) -> Question:
    """The length of a step (3,). Raises Refused where it is short."""
    distance = float(np.linalg.norm(step))
    if distance < MIN_LENGTH_M:
        raise Refused("too_near")
    end = ending(things["red"])
    return ask(name, views, rng, things, f"{distance:.1f}", {"distance": distance}, "point", end)


@task("depth_prediction_oc", views=1, form="number")
@task("depth_prediction_oc_mv", views=3, form="number")
def depth_prediction(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Red's depth is given; blue's depth is asked. Each is the z of the centre in the camera of its own mark's view."""
    red, blue = two_targets(views, rng)
    given, depth = depth_in_own_image(views, red), depth_in_own_image(views, blue)
    return ask_depth("depth_oc", views, rng, {"red": red, "blue": blue}, {"depth": depth, "given_depth": given})


@task("depth_prediction_oo", views=1, form="number")
@task("depth_prediction_oo_mv", views=3, form="number")
def depth_difference(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Red's depth is given; asked is |z of green - z of blue|, unsigned, each in the camera of its own mark's view."""
    red, blue, green = several_targets(views, rng, 3, "point")
    given, *depths = (depth_in_own_image(views, target) for target in (red, blue, green))
    gap = abs(depths[1] - depths[0])
    if gap < MIN_LENGTH_M:
        raise Refused("depths_too_alike")
    things: dict[MarkColor, Target] = {"red": red, "blue": blue, "green": green}
    return ask_depth("depth_oo", views, rng, things, {"depth_difference": gap, "given_depth": given})


@task("distance_prediction_oc", views=1, form="number")
@task("distance_prediction_oc_mv", views=3, form="number")
def observer_distance(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Distance from the first image's camera to the red centre, which is marked in another image where possible."""
    red = one_target(views, rng)
    return ask_distance("distance_oc", views, rng, {"red": red}, red.center - views.frames[0].pose[:3, 3])


@task("distance_prediction_oo", views=1, form="number")
@task("distance_prediction_oo_mv", views=3, form="number")
def distance_prediction(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Distance between the red and the blue centre."""
    red, blue = two_targets(views, rng)
    return ask_distance("distance_oo", views, rng, {"red": red, "blue": blue}, red.center - blue.center)


@task("spatial_volume_infer", views=1, form="number", needs_objects=True)
def volume(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Volume of the red object's box in cubic metres, two decimals."""
    red = one_target(views, rng)
    (thing,) = (thing for thing in views.scene.objects if thing.id == red.object_id)
    value = float(np.prod(thing.size))
    if value < MIN_VOLUME_M3:
        raise Refused("too_small")
    gold = {"volume": value, "size": thing.size.tolist()}
    return ask("volume", views, rng, {"red": red}, f"{value:.2f}", gold, "box")
