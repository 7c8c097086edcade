"""What shows that a model reads both photos: the same pair in the other order, and accuracy by type and angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hatch_ray.data.pairs import gold_plans
from hatch_ray.evaluation.findings import FINAL, Claim, claim, interval_text
from hatch_ray.evaluation.heldout import Row, in_order_of, term
from hatch_ray.evaluation.intervals import Bootstrap, Interval, verdict
from hatch_ray.geometry.se3 import as_transform
from hatch_ray.sample import Sample
from hatch_ray.systems.viewpoint.questions import LETTERS, MOVED, OPPOSITE, SIDES, TYPES

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Evaluations

TURNED_ROUND = "turned_round"
ANGLES_DEG = (10, 30, 50, 70, 101)
"""Edges of the ranges of angle; the last one is open."""
BY_CHANCE = 0.25
"""Who guesses a side of each order is right in both so often; who always says one side, never."""


def turned_round(sample: Sample) -> Sample:
    """The same question with the two photos in the other order: the right answer is the opposite one."""
    side = OPPOSITE[sample.meta["side"]]
    if TYPES[sample.task].options:
        answer = LETTERS[list(sample.meta["options"]).index(MOVED[SIDES.index(side)])]
    else:
        answer = f"{-float(sample.answer):+.0f}"
    views, up, plans = sample.views[::-1], sample.meta.get("up"), sample.plans
    if plans:
        poses = [as_transform(view.pose) for view in views if view.pose is not None]
        plans = gold_plans(poses, None if up is None else np.array(up))
    return replace(sample, views=views, answer=answer, plans=plans, meta=sample.meta | {"side": side})


def by_type_and_angle(rows: Sequence[Row], bootstrap: int, seed: int) -> dict[str, dict[str, Interval]]:
    """The exact term by question type and by range of the angle between the photos, "30-50"; empty cells are absent."""
    draws = Bootstrap([row["scene"] for row in rows], bootstrap, seed)
    exact, angle = term(rows, "exact"), np.array([row["angle_deg"] for row in rows])
    task = np.array([row["task"] for row in rows])
    found: dict[str, dict[str, Interval]] = {}
    for name in TYPES:
        for low, high in pairwise(ANGLES_DEG):
            above = high == ANGLES_DEG[-1]
            here = (task == name) & (angle >= low) & ((angle < high) | above)
            if interval := draws.mean(np.where(here, exact, np.nan)):
                found.setdefault(name, {})[f"{low} or more" if above else f"{low}-{high}"] = interval
    return found


def claims(found: Evaluations) -> list[Claim]:
    """Both orders of the photos are answered; what is right by type and angle stands beside it."""
    return [_both_orders(found), *_by_angle(found)]


def _both_orders(found: Evaluations) -> Claim:
    text = f"Photos turned round turn its answer: it is right in both orders in more than {BY_CHANCE:.0%} of the pairs"
    names = (FINAL, f"{FINAL}_{TURNED_ROUND}")
    if not all(name in found.rows for name in names):
        return claim(text)
    first, other = (found.rows[name] for name in names)
    both = np.minimum(term(first, "exact"), term(in_order_of(first, other), "exact"))
    interval = Bootstrap([row["scene"] for row in first], found.bootstrap, found.seed).mean(both)
    if interval is None:
        return claim(text)
    return claim(text, interval_text(interval), interval, verdict(interval, BY_CHANCE))


def _by_angle(found: Evaluations) -> list[Claim]:
    """One line a type: what the final model has right by angle. It holds where the type is right in over half of all:
    who looks at nothing reaches one half.
    """
    if FINAL not in found.rows:
        return []
    rows, lines = found.rows[FINAL], []
    draws = Bootstrap([row["scene"] for row in rows], found.bootstrap, found.seed)
    for name, cells in by_type_and_angle(rows, found.bootstrap, found.seed).items():
        here = np.array([row["task"] == name for row in rows])
        overall = draws.mean(np.where(here, term(rows, "exact"), np.nan))
        assert overall is not None
        measured = "; ".join(f"{angles} degrees: {interval_text(cell, 2)}" for angles, cell in cells.items())
        text = f"{name}: more than half is right, which is what one side alone would earn"
        lines.append(claim(text, f"{interval_text(overall)}; {measured}", overall, verdict(overall, 0.5)))
    return lines
