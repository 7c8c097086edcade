"""The blind control: does the model use its images? Ask every question with another question's images, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hatch_ray.evaluation.heldout import Row, term
from hatch_ray.evaluation.intervals import Bootstrap, all_hold, verdict
from hatch_ray.sample import Sample

MARGIN_SHARE = 0.5
"""A model's actions look when its images are worth at least this share of its margin over the best constant plan."""


def swap_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every sample with the images of another one of as many views; question, marks, gold answer and plans stay.

    The images come from another scene; where all samples show one scene, from a sample that shares no image.
    `meta["swapped_from"]` names the giver. Raises ValueError when a sample has no possible giver.
    """
    one_scene = len({sample.scene for sample in samples}) == 1
    random = np.random.default_rng(seed)
    images = [frozenset(view.image_path for view in sample.views) for sample in samples]

    def may_give(taker: int, giver: int) -> bool:
        if len(samples[giver].views) != len(samples[taker].views):
            return False
        return not images[giver] & images[taker] if one_scene else samples[giver].scene != samples[taker].scene

    swapped = []
    for index, sample in enumerate(samples):
        givers = [other for other in range(len(samples)) if may_give(index, other)]
        if not givers:
            raise ValueError(
                f"no other held-out sample with {len(sample.views)} views can lend its images to {sample.id}; "
                "the blind control needs more held-out scenes (data.heldout_samples, data.rooms.heldout_scenes)"
            )
        giver = samples[int(random.choice(givers))]
        swapped.append(replace(sample, views=giver.views, meta=sample.meta | {"swapped_from": giver.id}))
    return swapped


def blind_control(
    seen: Sequence[Row], swapped: Sequence[Row], constant: Sequence[Row], bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Read the control: `seen` are the model's rows with the right images, `swapped` with others', on one sample set.

    Two claims, each judged by its 95 % interval (`intervals.verdict`). `actions_look`: the margin over the best
    constant plan (chosen on these very samples) is positive, and the action reward falls by at least half of it;
    `action_surplus` is how much more than that it falls. None where no actions were due. `answers_look`: the answer
    reward falls.
    """
    order = {row["id"]: index for index, row in enumerate(seen)}
    if not (set(order) == {row["id"] for row in swapped} == {row["id"] for row in constant}):
        raise ValueError("the three evaluations answer different samples; evaluate all on the same held-out set")
    swapped = sorted(swapped, key=lambda row: order[row["id"]])
    constant = sorted(constant, key=lambda row: order[row["id"]])
    draws = Bootstrap([row["scene"] for row in seen], bootstrap, seed)
    action, blind, fixed = (term(rows, "action") for rows in (seen, swapped, constant))
    answer_fall = draws.mean(term(seen, "answer") - term(swapped, "answer"))
    fall, margin = draws.mean(action - blind), draws.mean(action - fixed)
    surplus = draws.mean((action - blind) - MARGIN_SHARE * (action - fixed))
    assert answer_fall is not None
    result: dict[str, Any] = {"answer_fall": answer_fall, "action_fall": fall, "action_margin": margin}
    result |= {"action_surplus": surplus, "answers_look": verdict(answer_fall)}
    if fall is None or margin is None or surplus is None:
        return result | {"fall_share": None, "actions_look": None}
    result["fall_share"] = round(fall["value"] / margin["value"], 4) if margin["value"] > 0 else None
    result["actions_look"] = all_hold(verdict(margin), verdict(surplus, above=False))
    return result
