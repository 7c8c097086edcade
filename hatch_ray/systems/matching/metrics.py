"""How well the marks of one question were matched: the pairs, and "none" too. Many questions: `measures`.

Gold g and prediction f map each mark of the first photo to one of the second or to none; f may say nothing.
M: g is a mark. V: f is a mark. C: both, and the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hatch_ray.systems.matching.reply import NONE

Pairs = Mapping[int, int | None]


@dataclass(frozen=True)
class Counts:
    """right: of all marks, those told rightly, none included. right_pairs, said_pairs, gold_pairs: |C|, |V|, |M|;
    right_none, said_none, gold_none: the same of "none".
    """

    marks: int
    right: int
    right_pairs: int
    said_pairs: int
    gold_pairs: int
    right_none: int
    said_none: int
    gold_none: int

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
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def exact(self) -> float:
        return float(self.right == self.marks)


def one_to_one(said: Pairs) -> bool:
    """Whether no mark of the second photo is told twice."""
    targets = [value for value in said.values() if value]
    return len(set(targets)) == len(targets)


def without_shared(said: Pairs) -> dict[int, int | None]:
    """The same with both of two marks that are told the same partner as wrong (None)."""
    targets = [value for value in said.values() if value]
    return {key: None if value and targets.count(value) > 1 else value for key, value in said.items()}
