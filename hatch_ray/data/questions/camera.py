"""Questions about the camera itself: view_change_infer and camera_motion_infer."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, phrase, task
from hatch_ray.data.visibility import project, to_camera, to_thousand
from hatch_ray.geometry.view_change import Convention
from hatch_ray.geometry.view_change import view_change as camera_change

MIN_DEPTH_M = 0.2
VIEW_CHANGE_PARTS = (
    ("move_right", "move_left", "right", 1), ("move_up", "move_down", "up", 1),
    ("move_forward", "move_backward", "forward", 1), ("rotate_up", "rotate_down", "pitch", 0),
    ("rotate_right", "rotate_left", "yaw", 0),
)  # fmt: skip
"""Word for a positive and a negative value, the value's name, its decimals."""
ROTATION: Convention = "camera"
"""SPAR's own convention is not public; this one is at one with the translation, which is in the first camera's axes."""


@task("view_change_infer", views=2, form="view_change", formats=("fill",), needs_depth=False)
def view_change(views: ViewTuple, rng: np.random.Generator) -> Question:
    """The second place in the first camera's axes, and where the second camera looks (`geometry.view_change`)."""
    first, second = views.frames
    gold = camera_change(first.pose, second.pose, views.scene.up, ROTATION)
    return Question(phrase("view_change", rng), view_change_text(gold), gold)


def view_change_text(gold: dict[str, float]) -> str:
    """SPAR's fixed form; "move_backward" is the only spelling that its scorer knows. A rounded 0 is positive."""

    said = []
    for plus, minus, name, decimals in VIEW_CHANGE_PARTS:
        rounded = round(gold[name], decimals)
        said.append(f"{plus if rounded >= 0 else minus}:{abs(rounded):.{decimals}f}")
    return ",".join(said)


@task("camera_motion_infer", views=2, form="camera_motion", needs_depth=False)
def camera_motion(views: ViewTuple, rng: np.random.Generator) -> Question:
    """The second camera's optical centre as a pixel (0-1000) of the first image and its z-depth there, `(x,y),d`."""
    first = views.frames[0]
    place = to_camera(first.pose, views.frames[1].pose[:3, 3])
    if place[2] < MIN_DEPTH_M:
        raise Refused("camera_not_in_front")
    x, y = to_thousand(project(first.intrinsics, place), first)
    if not (0 <= x <= 1000 and 0 <= y <= 1000):
        raise Refused("camera_outside_image")
    answer = f"({round(x)},{round(y)}),{place[2]:.1f}"
    return Question(phrase("camera_motion", rng), answer, {"x": float(x), "y": float(y), "depth": float(place[2])})
