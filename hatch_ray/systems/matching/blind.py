"""What can be replied without looking at the photos."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from hatch_ray.systems.matching.reward import Target

SEED = 20260
LABELS = {"constant": "best constant", "none": "all none", "identity": "1 to 1, 2 to 2", "random": "at random"}
"""What tables call them."""


def blind_pairs(targets: Sequence[Target]) -> dict[str, list[dict[int, int]]]:
    """By name, what is said of each question: constant (for each mark what is most often right, among questions with as
    many marks), none (of all), identity (1 to 1, 2 to 2, ..; none beyond the second photo's) and random (a different
    mark for each, as far as they go).
    """
    often: dict[tuple[int, int, int], Counter[int]] = defaultdict(Counter)
    for target in targets:
        for mark, partner in enumerate(target.gold, start=1):
            often[len(target.gold), target.second, mark][partner] += 1
    rng = np.random.default_rng(SEED)
    found: dict[str, list[dict[int, int]]] = {"constant": [], "none": [], "identity": [], "random": []}
    for target in targets:
        first, second = len(target.gold), target.second
        marks = range(1, first + 1)
        dealt = [int(one) + 1 for one in rng.permutation(max(first, second))]
        found["constant"].append({mark: often[first, second, mark].most_common(1)[0][0] for mark in marks})
        found["none"].append(dict.fromkeys(marks, 0))
        found["identity"].append({mark: mark if mark <= second else 0 for mark in marks})
        found["random"].append({mark: one if one <= second else 0 for mark, one in zip(marks, dealt, strict=False)})
    return found
