"""The same object in another view: position_matching."""

from __future__ import annotations

import numpy as np

from hatch_ray.data.pairs import Refused, ViewTuple
from hatch_ray.data.questions.registry import Question, task
from hatch_ray.data.questions.targets import ask, box_text


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
    box = second.pop(red.object_id)
    gold = {"box": list(box), "object": red.object_id}
    wrong = tuple(box_text(other) for other in second.values())
    return ask("position_matching", views, rng, {"red": red}, box_text(box), gold, "box", wrong=wrong, name=red.name)
