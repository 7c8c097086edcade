"""Questions about the camera itself: view_change_infer and camera_motion_infer."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.visibility import project, to_camera, to_thousand
from hatch_ray.geometry.view_change import Convention
from hatch_ray.geometry.view_change import view_change as camera_change

VIEW_CHANGE = (
    "How does the camera move from image 0 to image 1?",
    "Give the camera motion from image 0 to image 1.",
    "What camera motion leads from image 0 to image 1?",
)
CAMERA_MOTION = (
    "Where is the camera of image 1 seen in image 0? Give its place and depth.",
    "Give the position of image 1's camera in image 0 and its depth.",
    "At which place and depth in image 0 was image 1 taken?",
)
MIN_DEPTH_M = 0.2
ROTATION: Convention = "camera"
"""SPAR's own convention is not public; this one is at one with the translation, which is in the first camera's axes."""


@task("view_change_infer", views=2, form="view_change", formats=("fill",))
def view_change(views: ViewTuple, rng: np.random.Generator) -> Question:
    """The second place in the first camera's axes, and where the second camera looks (`geometry.view_change`)."""
    first, second = views.frames
    gold = camera_change(first.pose, second.pose, views.scene.up, ROTATION)
    return Question(pick(VIEW_CHANGE, rng), view_change_text(gold), gold)


def view_change_text(gold: dict[str, float]) -> str:
    """SPAR's fixed form; "move_backward" is the only spelling that its scorer knows. A rounded 0 is positive."""

    def piece(plus: str, minus: str, value: float, decimals: int) -> str:
        rounded = round(value, decimals)
        return f"{plus if rounded >= 0 else minus}:{abs(rounded):.{decimals}f}"

    return ",".join(
        [
            piece("move_right", "move_left", gold["right"], 1),
            piece("move_up", "move_down", gold["up"], 1),
            piece("move_forward", "move_backward", gold["forward"], 1),
            piece("rotate_up", "rotate_down", gold["pitch"], 0),
            piece("rotate_right", "rotate_left", gold["yaw"], 0),
        ]
    )


@task("camera_motion_infer", views=2, form="camera_motion")
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
    return Question(pick(CAMERA_MOTION, rng), answer, {"x": float(x), "y": float(y), "depth": float(place[2])})
