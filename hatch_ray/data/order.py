"""Which samples a stage uses, in which order, for how many steps. All follows from seed and step: resume is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from hatch_ray.config_sections import Trained

T = TypeVar("T")


class SampleOrder:
    """An endless order over `count` samples: each epoch a new permutation, steps of `per_step` without a gap."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        if count < 1:
            raise ValueError("there are no samples to train on")
        self.count, self.per_step, self.seed = count, per_step, seed

    def indices(self, step: int) -> list[int]:
        """The samples of a step, counted from 0."""
        places = range(step * self.per_step, (step + 1) * self.per_step)
        epochs = {place // self.count for place in places}
        orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(self.count) for epoch in epochs}
        return [int(orders[place // self.count][place % self.count]) for place in places]


def share_of(samples: Sequence[T], fraction: float, seed: int) -> list[T]:
    """A seeded share of the samples, in their order; one at least."""
    count = max(1, round(fraction * len(samples)))
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    return [samples[index] for index in sorted(order[:count])]


def stage_steps(settings: Trained, samples: int, per_step: int) -> int:
    """Optimizer steps of a stage: max_steps where it is set, else by epochs; the last step is filled from the next one.

    samples: those that an epoch has; per_step: those that a step takes.
    """
    return settings.max_steps or math.ceil(settings.epochs * samples / per_step)
