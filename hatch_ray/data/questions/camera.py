"""Questions about the camera itself: view_change_infer and camera_motion_infer."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.visibility import project, to_camera, to_thousand
from hatch_ray.geometry.se3 import relative

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


@task("view_change_infer", views=2, form="view_change")
def view_change(views: ViewTuple, rng: np.random.Generator) -> Question:
    """t = R_1^T (c_2 - c_1) and the direction f = R_1^T R_2 e_z of the second view, both in the first camera's frame.

    yaw = atan2(f_x, f_z), right positive; pitch = asin(-f_y), up positive; roll is left out.
    """
    motion = relative(views.transforms[0], views.transforms[1])
    right, down, forward = motion.translation
    direction = motion.rotation.apply([0, 0, 1])
    yaw = np.degrees(np.arctan2(direction[0], direction[2]))
    pitch = np.degrees(np.arcsin(np.clip(-direction[1], -1, 1)))
    gold = {"right": right, "up": -down, "forward": forward, "pitch": pitch, "yaw": yaw}
    gold = {name: float(value) for name, value in gold.items()}
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
