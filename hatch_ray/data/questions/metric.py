"""Questions with a number as answer: depths, distances and the volume of a box, in metres."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.targets import (
    CENTERS,
    boxed,
    named,
    one_target,
    point_mark,
    several_targets,
    two_targets,
)
from hatch_ray.data.visibility import Target, to_camera

DEPTH = (
    "In its own image the {red} has depth {depth} m. What depth has the {blue} in its image?",
    "The {red} is {depth} m deep in its image. How deep is the {blue} in its own, in metres?",
    "Depth of the {red}: {depth} m. Depth of the {blue}? Each in its own image, metres.",
)
DEPTH_IN_ONE = (
    "The {red} has depth {depth} m. What depth has the {blue}, in metres?",
    "The {red} is {depth} m deep. How deep is the {blue}, in metres?",
    "Depth of the {red}: {depth} m. Depth of the {blue}, in metres?",
)
DEPTH_GAP = (
    "In its own image the {red} has depth {depth} m. By how many metres do the depths of the {green} and the {blue}, "
    "each in its own image, differ?",
    "The {red} is {depth} m deep in its image. How much deeper or shallower is the {green} than the {blue}, each in "
    "its own image, in metres?",
    "Depth of the {red}: {depth} m. Difference of depth between the {green} and the {blue}? Each in its own image, "
    "metres.",
)
DEPTH_GAP_IN_ONE = (
    "The {red} has depth {depth} m. By how many metres do the depths of the {green} and the {blue} differ?",
    "The {red} is {depth} m deep. How much deeper or shallower is the {green} than the {blue}, in metres?",
    "Depth of the {red}: {depth} m. Difference of depth between the {green} and the {blue}, in metres?",
)
OBSERVER = (
    "How far is the {red} from the observer of image 0, in metres?",
    "What is the distance from the camera of image 0 to the {red} in metres?",
    "Give the distance in metres between the observer of image 0 and the {red}.",
)
DISTANCE = (
    "How far is the {red} from the {blue}, in metres?",
    "What is the distance from the {red} to the {blue} in metres?",
    "Give the distance in metres between the {red} and the {blue}.",
)
VOLUME = (
    "What is the volume of the {red}'s bounding box, in cubic metres?",
    "How many cubic metres does the bounding box of the {red} hold?",
    "Give the volume in cubic metres of a box that just holds the {red}.",
)
MIN_LENGTH_M = 0.3
MIN_VOLUME_M3 = 0.05
"""A smaller volume would lose too much in rounding to 0.01."""


def depth_in_own_image(views: ViewTuple, target: Target) -> float:
    """z of the target's centre in the camera of the view that marks it."""
    return float(to_camera(views.frames[target.view].pose, target.center)[2])


def ending(target: Target) -> str:
    """What closes a question about objects; a surface point has no centre."""
    return CENTERS if target.name else ""


@task("depth_prediction_oc", views=1, form="number")
@task("depth_prediction_oc_mv", views=3, form="number")
def depth_prediction(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Red's depth is given; blue's depth is asked. Each is the z of the centre in the camera of its own mark's view."""
    red, blue = two_targets(views, rng)
    red_depth, blue_depth = depth_in_own_image(views, red), depth_in_own_image(views, blue)
    if min(red_depth, blue_depth) < MIN_LENGTH_M:
        raise Refused("too_near")
    text = pick(DEPTH if len(views) > 1 else DEPTH_IN_ONE, rng).format(
        red=named(views, red, "red"), blue=named(views, blue, "blue"), depth=f"{red_depth:.1f}"
    )
    return Question(
        text + ending(red),
        f"{blue_depth:.1f}",
        {"depth": blue_depth, "given_depth": red_depth, "points": [red.center.tolist(), blue.center.tolist()]},
        (point_mark(red, "red"), point_mark(blue, "blue")),
    )


@task("depth_prediction_oo", views=1, form="number")
@task("depth_prediction_oo_mv", views=3, form="number")
def depth_difference(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Red's depth is given; asked is |z of green - z of blue|, unsigned, each in the camera of its own mark's view."""
    red, blue, green = several_targets(views, rng, 3, "point")
    depths = [depth_in_own_image(views, target) for target in (red, blue, green)]
    if min(depths) < MIN_LENGTH_M:
        raise Refused("too_near")
    gap = abs(depths[2] - depths[1])
    if gap < MIN_LENGTH_M:
        raise Refused("depths_too_alike")
    text = pick(DEPTH_GAP if len(views) > 1 else DEPTH_GAP_IN_ONE, rng).format(
        red=named(views, red, "red"),
        blue=named(views, blue, "blue"),
        green=named(views, green, "green"),
        depth=f"{depths[0]:.1f}",
    )
    return Question(
        text + ending(red),
        f"{gap:.1f}",
        {
            "depth_difference": gap,
            "given_depth": depths[0],
            "points": [target.center.tolist() for target in (red, blue, green)],
        },
        (point_mark(red, "red"), point_mark(blue, "blue"), point_mark(green, "green")),
    )


@task("distance_prediction_oc", views=1, form="number")
@task("distance_prediction_oc_mv", views=3, form="number")
def observer_distance(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Distance from the first image's camera to the red centre, which is marked in another image where possible."""
    red = one_target(views, rng)
    distance = float(np.linalg.norm(red.center - views.frames[0].pose[:3, 3]))
    if distance < MIN_LENGTH_M:
        raise Refused("too_near")
    text = pick(OBSERVER, rng).format(red=named(views, red, "red"))
    return Question(
        text + ending(red),
        f"{distance:.1f}",
        {"distance": distance, "points": [red.center.tolist()]},
        (point_mark(red, "red"),),
    )


@task("distance_prediction_oo", views=1, form="number")
@task("distance_prediction_oo_mv", views=3, form="number")
def distance_prediction(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Distance between the red and the blue centre."""
    red, blue = two_targets(views, rng)
    distance = float(np.linalg.norm(red.center - blue.center))
    if distance < MIN_LENGTH_M:
        raise Refused("too_near")
    text = pick(DISTANCE, rng).format(red=named(views, red, "red"), blue=named(views, blue, "blue"))
    return Question(
        text + ending(red),
        f"{distance:.1f}",
        {"distance": distance, "points": [red.center.tolist(), blue.center.tolist()]},
        (point_mark(red, "red"), point_mark(blue, "blue")),
    )


@task("spatial_volume_infer", views=1, form="number", needs_objects=True)
def volume(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Volume of the red object's box in cubic metres, two decimals."""
    red = one_target(views, rng)
    (thing,) = (thing for thing in views.scene.objects if thing.id == red.object_id)
    value = float(np.prod(thing.size))
    if value < MIN_VOLUME_M3:
        raise Refused("too_small")
    names, marks = boxed(views, {"red": red})
    text = pick(VOLUME, rng).format(**names)
    gold = {"volume": value, "size": thing.size.tolist(), "points": [red.center.tolist()]}
    return Question(text, f"{value:.2f}", gold, marks)
