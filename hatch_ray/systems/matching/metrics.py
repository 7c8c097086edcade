"""How well marks were matched: the official measures, which ask for matched pairs alone, and those that ask for all.

Gold g and prediction f map each mark of the first photo to one of the second or to none; f may say nothing.
M: g is a mark. V: f is a mark. C: both, and the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hatch_ray.systems.matching.reply import NONE

Pairs = Mapping[int, int | None]


@dataclass(frozen=True)
class Counts:
    """Of one question, or of several together (`+`).

    right: of all marks, those told rightly, none included. right_pairs, said_pairs, gold_pairs: |C|, |V|, |M|;
    right_none, said_none, gold_none: the same of "none".
    """

    marks: int = 0
    right: int = 0
    right_pairs: int = 0
    said_pairs: int = 0
    gold_pairs: int = 0
    right_none: int = 0
    said_none: int = 0
    gold_none: int = 0

    @classmethod
    def of(cls, said: Pairs, gold: Mapping[int, int]) -> Counts:
        right = [key for key, value in gold.items() if said.get(key) == value]
        none = sum(gold[key] == NONE for key in right)
        said_none = sum(said.get(key) == NONE for key in gold)
        said_pairs = sum(bool(said.get(key)) for key in gold)
        gold_none = sum(value == NONE for value in gold.values())
        return cls(
            len(gold), len(right), len(right) - none, said_pairs, len(gold) - gold_none, none, said_none, gold_none
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.marks)

    @property
    def precision(self) -> float:
        return self.right_pairs / max(1, self.said_pairs)

    @property
    def recall(self) -> float:
        return self.right_pairs / max(1, self.gold_pairs)

    @property
    def f1(self) -> float:
        """Of one question the official measure; of several together the micro one."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def exact(self) -> float:
        return float(self.right == self.marks)

    @property
    def none_precision(self) -> float:
        return self.right_none / max(1, self.said_none)

    @property
    def none_recall(self) -> float:
        return self.right_none / max(1, self.gold_none)


def table(said: Sequence[Pairs], gold: Sequence[Mapping[int, int]]) -> dict[str, float]:
    """The measures of many questions: precision, recall and f1 as means (the leaderboard's: f1 is the mean of theirs),
    the same of all pairs together (micro), and what the leaderboard does not ask.

    Raises ValueError where the numbers of questions differ, or are none.
    """
    each = [Counts.of(one, truth) for one, truth in zip(said, gold, strict=True)]
    if not each:
        raise ValueError("there is no question to measure")
    whole = sum(each, Counts())
    means = {name: _mean([getattr(one, name) for one in each]) for name in ("precision", "recall", "f1")}
    micro = {f"micro_{name}": float(getattr(whole, name)) for name in ("precision", "recall", "f1")}
    return (
        means
        | micro
        | {"accuracy": _mean([one.accuracy for one in each]), "exact": _mean([one.exact for one in each])}
        | {"none_precision": whole.none_precision, "none_recall": whole.none_recall}
        | {"one_to_one": _mean([float(one_to_one(pairs)) for pairs in said])}
    )


def one_to_one(said: Pairs) -> bool:
    """Whether no mark of the second photo is told twice."""
    targets = [value for value in said.values() if value]
    return len(set(targets)) == len(targets)


def without_shared(said: Pairs) -> dict[int, int | None]:
    """The same with both of two marks that are told the same partner as wrong (None)."""
    targets = [value for value in said.values() if value]
    return {key: None if value and targets.count(value) > 1 else value for key, value in said.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
