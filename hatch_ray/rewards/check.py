"""Are a group's scores fit to train on? A judge that runs into an error of its own must not become a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hatch_ray.config_sections import RewardConfig

OPTIONAL = ("action", "d_t", "d_r")
"""None where no actions are due, or none could be read."""
ROUNDING = 1e-6


def check_scores(sample_id: str, scores: Sequence[Mapping[str, Any]], reward: RewardConfig) -> list[str]:
    """What is wrong with the scores (`Score.to_dict`) of one sample's replies, one text a fault; [] when nothing is.

    Terms must lie in [0, 1], the total between 0 and the sum of the weights, errors must be finite and not below 0.
    """
    weights = reward.action_weight + reward.answer_weight + reward.format_weight
    bounds = {"total": weights, "format": 1.0, "action": 1.0, "answer": 1.0, "d_t": math.inf, "d_r": math.inf}
    problems = []
    for number, score in enumerate(scores):
        for name, bound in bounds.items():
            value = score.get(name)
            if value is None and name in OPTIONAL:
                continue
            if not _within(value, bound):
                upper = f"{bound:g}]" if math.isfinite(bound) else "inf)"
                problems.append(f"sample {sample_id}, reply {number}: {name} is {value!r}, not in [0, {upper}")
    return problems


def _within(value: Any, bound: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and 0 <= value <= bound * (1 + ROUNDING)
