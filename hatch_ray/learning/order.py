"""Which samples a step takes. It follows from the seed and the step alone, so a resumed stage goes on exactly."""

from __future__ import annotations

import numpy as np


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
