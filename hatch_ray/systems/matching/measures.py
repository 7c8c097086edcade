"""Replies to many questions, measured in percent with 95 % intervals: a model's, a matcher's, or blind ones.

The leaderboard's precision, recall and F1 (`official`) stand beside what it does not ask (`metrics`): the same of all
pairs together, the share of all marks that are told rightly, and how well "none" is said. Each measure is a sum over a
sum, so that any part of the questions can be measured alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hatch_ray.evaluation.intervals import Bootstrap, Interval
from hatch_ray.systems.matching.blind import LABELS, blind_pairs
from hatch_ray.systems.matching.metrics import Counts, one_to_one
from hatch_ray.systems.matching.official import official
from hatch_ray.systems.matching.reply import NONE, read_reply, write_reply
from hatch_ray.systems.matching.reward import Target

UNREAD = {"mapping:no_answer", "mapping:bad_json", "mapping:no_object"}
MEASURES = {
    "precision": "P", "recall": "R", "f1": "F1", "micro_precision": "all P", "micro_recall": "all R",
    "micro_f1": "all F1", "accuracy": "marks", "exact": "exact", "none_precision": "none P", "none_recall": "none R",
    "one_to_one": "1:1", "parsed": "read",
}  # fmt: skip
"""Name -> heading. precision, recall, f1: the leaderboard's. micro: of all pairs together. accuracy: share of all
marks, none included, as the reward's. exact: share of questions all right. one_to_one: of replies that tell no
mark of the second photo twice. parsed: of replies whose answer block holds an object."""
LEGEND = (
    "Percent. P, R, F1: the leaderboard's, of matched pairs, means over questions; all: of all pairs together; marks: "
    'share of marks told rightly, none included; exact: questions all right; none P, none R: of "none"; 1:1: no mark '
    "told twice; read: replies with an object."
)
Ratio = tuple[np.ndarray, np.ndarray]
"""Of every question: what is summed, and what its sum is divided by."""


@dataclass(frozen=True)
class Case:
    """A question as it is measured.

    answer   matched pairs as text, as the benchmark has them.
    gold     of every mark of the first photo, from 1 on, the partner's number or 0; second: marks of the second photo.
    cluster  questions with the same one are not independent.
    parts    of which source, level, .. it is.
    """

    answer: Mapping[str, str]
    gold: tuple[int, ...]
    second: int
    cluster: str
    parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, gold: Sequence[int], second: int, cluster: str, parts: Mapping[str, str]) -> Case:
        """One whose answer is the matched pairs of its gold."""
        answer = {str(mark): str(partner) for mark, partner in enumerate(gold, start=1) if partner != NONE}
        return cls(answer, tuple(gold), second, cluster, parts)

    @property
    def target(self) -> Target:
        return Target(self.gold, self.second, False)


def score(text: str, case: Case) -> dict[str, tuple[float, float]]:
    """The measures of one reply, any text: (part, whole) of each."""
    gold = dict(enumerate(case.gold, start=1))
    read = read_reply(text, len(gold), case.second, False)
    counts, theirs = Counts.of(read.pairs, gold), official(text, case.answer)
    shares = {
        "precision": theirs.precision, "recall": theirs.recall, "f1": theirs.f1, "accuracy": counts.accuracy,
        "exact": counts.exact, "one_to_one": float(one_to_one(read.pairs)),
        "parsed": float(not UNREAD & set(read.problems)),
    }  # fmt: skip
    sums = {
        "micro_precision": (counts.right_pairs, counts.said_pairs),
        "micro_recall": (counts.right_pairs, counts.gold_pairs),
        "micro_f1": (2 * counts.right_pairs, counts.said_pairs + counts.gold_pairs),
        "none_precision": (counts.right_none, counts.said_none),
        "none_recall": (counts.right_none, counts.gold_none),
    }
    found = {name: (value, 1.0) for name, value in shares.items()} | sums
    return {name: (float(found[name][0]), float(found[name][1])) for name in MEASURES}


class Measured:
    """Replies to the same questions, by who replied."""

    def __init__(self, cases: Sequence[Case], bootstrap: int, seed: int) -> None:
        self.cases = list(cases)
        self.draws = Bootstrap([case.cluster for case in self.cases], bootstrap, seed)
        self.lines: dict[str, dict[str, Ratio]] = {}

    def add(self, name: str, texts: Sequence[str]) -> None:
        """Someone's replies, one a question, in order. Raises ValueError when their number is another."""
        scores = [score(text, case) for text, case in zip(texts, self.cases, strict=True)]
        self.lines[name] = {
            measure: tuple(np.array([each[measure] for each in scores]).reshape(-1, 2).T)  # type: ignore[misc]
            for measure in MEASURES
        }

    def add_blind(self) -> None:
        """The replies without looking to the same questions."""
        for name, pairs in blind_pairs([case.target for case in self.cases]).items():
            self.add(LABELS[name], [write_reply(each) for each in pairs])

    def whole(self, name: str) -> dict[str, Interval | None]:
        """Every measure of all questions, percent; None where it does not apply."""
        return {measure: self.of(name, measure) for measure in MEASURES}

    def of(self, name: str, measure: str, part: np.ndarray | None = None) -> Interval | None:
        """One measure, of the questions that `part` (bool) names."""
        above, below = self.lines[name][measure]
        chosen = np.ones(len(self.cases)) if part is None else part.astype(float)
        return self.draws.ratio(100 * above * chosen, below * chosen)

    def rows(self) -> list[list[str]]:
        """Every measure of all questions as cells of a table, a row for who replied."""
        return [[name, *(figure(each) for each in self.whole(name).values())] for name in self.lines]

    def parts(self, *kinds: str) -> dict[str, np.ndarray]:
        """By value of these kinds of parts ("L1", or "indoor L1" of two): which questions have it."""
        names = np.array([" ".join(case.parts.get(kind, "unknown") for kind in kinds) for case in self.cases])
        return {str(name): names == name for name in sorted(set(names.tolist()))}


def figure(interval: Interval | None, spread: bool = False) -> str:
    """A percentage, with half of its interval where that is asked for and there is one; "-" for none."""
    if interval is None:
        return "-"
    value = f"{interval['value']:.1f}"
    half = (interval["high"] - interval["low"]) / 2
    return f"{value} ±{half:.1f}" if spread and half else value


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in plain text, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = (
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(
            zip(row, widths, strict=True)))
        for row in (heads, *rows)
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
