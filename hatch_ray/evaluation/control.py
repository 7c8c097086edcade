"""The blind control: does the model use its images? Every question is asked with another question's images, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hatch_ray.sample import Sample


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
