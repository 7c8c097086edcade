"""Questions with a length as answer: depth_prediction_oc_mv and distance_prediction_oo_mv."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.targets import CENTERS, point_mark, two_targets
from hatch_ray.data.visibility import to_camera

DEPTH = (
    "In its own image the {red} has depth {depth} m. What depth has the {blue} in its image?",
    "The {red} is {depth} m deep in its image. How deep is the {blue} in its own, in metres?",
    "Depth of the {red}: {depth} m. Depth of the {blue}? Each in its own image, metres.",
)
DISTANCE = (
    "How far is the {red} from the {blue}, in metres?",
    "What is the distance from the {red} to the {blue} in metres?",
    "Give the distance in metres between the {red} and the {blue}.",
)
MIN_LENGTH_M = 0.3


@task("depth_prediction_oc_mv", views=3, form="number")
def depth_prediction(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Red's depth is given; blue's depth is asked. Each is the z of the centre in the camera of its own mark's view."""
    red, blue = two_targets(views, rng)
    red_depth = float(to_camera(views.frames[red.view].pose, red.center)[2])
    blue_depth = float(to_camera(views.frames[blue.view].pose, blue.center)[2])
    if min(red_depth, blue_depth) < MIN_LENGTH_M:
        raise Refused("too_near")
    text = pick(DEPTH, rng).format(
        red=red.phrase("red point"), blue=blue.phrase("blue point"), depth=f"{red_depth:.1f}"
    )
    return Question(
        text + (CENTERS if red.name else ""),
        f"{blue_depth:.1f}",
        {"depth": blue_depth, "given_depth": red_depth, "points": [red.center.tolist(), blue.center.tolist()]},
        (point_mark(red, "red"), point_mark(blue, "blue")),
    )


@task("distance_prediction_oo_mv", views=3, form="number")
def distance_prediction(views: ViewTuple, rng: np.random.Generator) -> Question:
    """Distance between the red and the blue centre."""
    red, blue = two_targets(views, rng)
    distance = float(np.linalg.norm(red.center - blue.center))
    if distance < MIN_LENGTH_M:
        raise Refused("too_near")
    text = pick(DISTANCE, rng).format(red=red.phrase("red point"), blue=blue.phrase("blue point"))
    return Question(
        text + (CENTERS if red.name else ""),
        f"{distance:.1f}",
        {"distance": distance, "points": [red.center.tolist(), blue.center.tolist()]},
        (point_mark(red, "red"), point_mark(blue, "blue")),
    )
