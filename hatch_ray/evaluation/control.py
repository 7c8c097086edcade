"""The blind control: does the model use its images? Ask every question with another question's images, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hatch_ray.evaluation.heldout import Row, term
from hatch_ray.evaluation.intervals import Bootstrap
from hatch_ray.sample import Sample

MARGIN_SHARE = 0.5
"""A model sees when its images are worth at least this share of its margin over the best constant plan."""


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

    The rule: the action reward must fall by at least half of the model's margin over the best constant plan (chosen on
    these very samples), the margin being positive, and the answer reward must fall. `sees` reads it on the values
    themselves; `sees_with_interval` asks it of the pessimistic ends of the 95 % intervals.
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
    result["action_surplus"] = surplus
    if fall is None or margin is None or surplus is None:
        return result | {"fall_share": None, "sees": None, "sees_with_interval": None}
    result["fall_share"] = round(fall["value"] / margin["value"], 4) if margin["value"] > 0 else None
    result["sees"] = margin["value"] > 0 and surplus["value"] >= 0 and answer_fall["value"] > 0
    result["sees_with_interval"] = margin["low"] > 0 and surplus["low"] >= 0 and answer_fall["low"] > 0
    return result
