"""A judged reply: named reward terms, and everything that explains them. Every system's `score` returns one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROUNDING = 1e-6
TOTAL = "total"
"""The name of the weighted sum among the terms."""


@dataclass(frozen=True)
class Score:
    """One reply judged.

    terms     reward terms by name, each in [0, 1]; None: not due for this reply, and left out of the total.
    measures  other numbers of 0 or more that are worth a median (errors in metres or degrees); None: not known.
    reasons   why a term is low, as "term:name", for counting.
    answer    the answer that was read; None where there is none.
    detail    what else was read, as plain JSON values, for RUN/samples and RUN/eval.
    """

    terms: Mapping[str, float | None]
    measures: Mapping[str, float | None] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    answer: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def total(self, weights: Mapping[str, float]) -> float:
        """The weighted sum of the terms that are due, in the order of the weights."""
        total = 0.0
        for name, weight in weights.items():
            value = self.terms.get(name)
            if value is not None:
                total += weight * value
        return total

    def row(self, weights: Mapping[str, float]) -> dict[str, Any]:
        """Plain values: {"terms", "measures", "reasons", "parsed_answer", and what `detail` has}.

        terms: the system's, and "total".
        """
        return {
            "terms": {**self.terms, TOTAL: self.total(weights)},
            "measures": dict(self.measures),
            "reasons": list(self.reasons),
            "parsed_answer": self.answer,
            **self.detail,
        }


def check_scores(sample_id: str, scores: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> list[str]:
    """What is wrong with the scores (`Score.row`) of one sample's replies, one text a fault; [] when nothing is.

    A reward actor that runs into an error of its own must not become a gradient. Terms are those of the weights and lie
    in [0, 1], the total between 0 and the sum of the weights; measures are finite and not below 0.
    """
    problems = []
    for number, score in enumerate(scores):
        terms, measures = score.get("terms", {}), score.get("measures", {})
        bounds = dict.fromkeys(weights, 1.0) | {TOTAL: sum(weights.values())}
        values = [(name, terms.get(name, math.nan), bound) for name, bound in bounds.items()]
        values += [(name, value, math.inf) for name, value in measures.items()]
        for name, value, bound in values:
            if (value is not None or name == TOTAL) and not _within(value, bound):
                upper = f"{bound:g}]" if math.isfinite(bound) else "inf)"
                problems.append(f"sample {sample_id}, reply {number}: {name} is {value!r}, not in [0, {upper}")
        if unknown := sorted(set(terms) - set(bounds)):
            problems.append(f"sample {sample_id}, reply {number}: the terms {', '.join(unknown)} have no weight")
    return problems


def _within(value: Any, bound: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= bound * (1 + ROUNDING)
