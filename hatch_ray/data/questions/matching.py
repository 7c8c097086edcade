"""The same object in another view: position_matching."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, pick, task
from hatch_ray.data.questions.targets import box_mark, box_text

MATCHING = (
    "The red bbox in image 0 shows the {name}. What is its box in image 1?",
    "Find the {name}, marked by a red bbox in image 0, in image 1. Give its box.",
    "Give the box in image 1 of the {name} (red bbox, image 0).",
)


@task("position_matching", views=2, form="box", needs_objects=True)
def position_matching(views: ViewTuple, rng: np.random.Generator) -> Question:
    """The box of the object's visible pixels in the second image, `[x1,y1,x2,y2]` in 0-1000.

    Wrong options are other objects' boxes in the second image, then boxes of the same size elsewhere.
    """
    second = {target.object_id: target.box for target in views.objects_seen[1] if target.box is not None}
    shared = [target for target in views.objects_seen[0] if target.object_id in second]
    if not shared:
        raise Refused("no_object_in_both_views")
    red = shared[int(rng.integers(len(shared)))]
    box = second[red.object_id]
    text = pick(MATCHING, rng).format(name=red.name)
    gold = {"box": list(box), "object": red.object_id, "points": [red.center.tolist()]}
    wrong = tuple(box_text(other) for object_id, other in second.items() if object_id != red.object_id)
    return Question(text, box_text(box), gold, (box_mark(red, "red"),), wrong)
