"""One answer out of several replies: a vote over their typed values, weighted by how consistent their plans are.

Equal replies give an equal result, in whatever order they came; of several winners of one value the heaviest speaks,
then the first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hatch_ray.rewards.terms import mean_relative_accuracy, plain_text, score_answer
from serve.schema import Consistency, Value

SCALE_M, SCALE_DEG = 1.0, 30.0
"""An inconsistency of this size halves a reply's weight: the scales of the action reward (reward.tau_t, tau_r)."""
UNREADABLE_WEIGHT = 1 / 3
"""Of a reply that owed plans for three views or more and wrote no readable triple: it counts as one that misses by
both scales, or leaving plans out would pay."""


@dataclass(frozen=True)
class Ballot:
    """One reply: its answer as written, the typed value (None: not readable) and its weight (> 0)."""

    answer: str | None
    value: Value | None
    weight: float


@dataclass(frozen=True)
class Election:
    """winner: index of the reply that speaks. The rest as in `serve.schema.Votes`."""

    winner: int
    counts: dict[str, float]
    agreement: float
    spread: float | None


NUMBERS = ("number", "box", "camera_motion", "view_change")
"""Answer forms whose values can be near each other; of the others a value is right or wrong."""


def weight_of(consistency: Consistency | None, owed: bool) -> float:
    """1 / (1 + metres / SCALE_M + degrees / SCALE_DEG); 1 where no triple was owed.

    owed: whether the prompt asked for the plans of three views or more.
    """
    if consistency is None:
        return UNREADABLE_WEIGHT if owed else 1.0
    return 1 / (1 + consistency.metres / SCALE_M + consistency.degrees / SCALE_DEG)


def elect(ballots: Sequence[Ballot], form: str) -> Election:
    """The vote over at least one reply.

    Letters and texts: the value with the largest sum of weights. Numbers: the lower weighted median. Boxes, camera
    motions and view changes: the reply that scores best, in the weighted mean, as a gold answer for the others (boxes:
    IoU). Where no reply has a readable value, the heaviest speaks.
    """
    valid = [index for index, ballot in enumerate(ballots) if ballot.value is not None]
    if not valid:
        return Election(_heaviest(ballots, range(len(ballots))), {}, 0.0, None)
    groups: dict[str, list[int]] = {}
    for index in valid:
        groups.setdefault(_name(ballots[index].value, form), []).append(index)
    counts = {name: math.fsum(ballots[index].weight for index in group) for name, group in groups.items()}
    spread = None
    if form not in NUMBERS:
        # Equal sums: the alphabet decides, not who came first.
        chosen = min(groups, key=lambda name: (-counts[name], name))
    elif form == "number":
        numbers = sorted((ballots[index].value, ballots[index].weight) for index in valid)  # type: ignore[type-var]
        median = weighted_quantile(numbers, 0.5)  # type: ignore[arg-type]
        spread = weighted_quantile(numbers, 0.75) - weighted_quantile(numbers, 0.25)  # type: ignore[arg-type]
        spread = min(spread, sys.float_info.max)
        chosen = _name(median, form)
    else:
        chosen = min(groups, key=lambda name: (-_agreement(ballots, groups[name][0], form), name))
    winner = _heaviest(ballots, groups[chosen])
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return Election(
        winner, {name: round(count, 6) for name, count in ordered.items()}, _agreement(ballots, winner, form), spread
    )


def weighted_quantile(pairs: Sequence[tuple[float, float]], share: float) -> float:
    """The smallest value at which the summed weight reaches `share` of the whole; pairs (value, weight) by value."""
    whole = math.fsum(weight for _, weight in pairs)
    for end, (value, _) in enumerate(pairs, 1):
        if math.fsum(weight for _, weight in pairs[:end]) >= share * whole * (1 - 1e-12):
            return value
    return pairs[-1][0]


def _heaviest(ballots: Sequence[Ballot], among: Sequence[int] | range) -> int:
    return max(among, key=lambda index: (ballots[index].weight, -index))


def _name(value: Value | None, form: str) -> str:
    """Equal for equal values (-0 is 0); what `counts` shows."""
    if isinstance(value, str):
        return plain_text(value) if form == "text" else value
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:z.6g}" for key, number in value.items())
    if isinstance(value, list):
        return "[" + ",".join(f"{number:z.6g}" for number in value) + "]"
    return f"{value:z.6g}"


def _agreement(ballots: Sequence[Ballot], winner: int, form: str) -> float:
    """Weighted mean score of all replies against the winner; one without a value scores 0."""
    whole = math.fsum(ballot.weight for ballot in ballots)
    parts = [ballot.weight * _likeness(ballot, ballots[winner], form) for ballot in ballots if ballot.value is not None]
    return round(min(1.0, math.fsum(parts) / whole), 6)


def _likeness(one: Ballot, gold: Ballot, form: str) -> float:
    """The training reward of `one` if `gold` were the right answer, 0 to 1; 1 for equal values."""
    if _name(one.value, form) == _name(gold.value, form):
        return 1.0
    if isinstance(one.value, float) and isinstance(gold.value, float):
        return mean_relative_accuracy(one.value, gold.value)
    if form not in NUMBERS:
        return 0.0
    assert gold.answer is not None
    return score_answer(one.answer, gold.answer, form)[0]
