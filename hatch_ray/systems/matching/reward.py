"""The reward of wide-baseline matching (arXiv 2606.03577, section 3.3): what is right, and the form of the reply.

The paper: r = r_format + r_match with r_format in {0, 1, 2}, so that the most is 3. Here each part is a term in [0, 1]
and has a weight of its own; `paper` weighs them 1, 1, 1. The code of the authors takes 0.5 / n for each key that does
not exist, as here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from hatch_ray.config_sections import Section
from hatch_ray.rewards.score import Score
from hatch_ray.systems.matching.metrics import Counts, without_shared
from hatch_ray.systems.matching.reply import read_reply, write_pairs

Weight = Annotated[float, Field(ge=0)]
MEASURED = ("precision", "recall", "f1", "exact")
"""Terms without weight: the leaderboard's measures of each reply, and whether all of it is right."""


class MatchReward(Section):
    match_weight: Weight = 1.0
    """Of the share of all marks of the first photo that are told rightly, none included (r_match)."""
    blocks_weight: Weight = 0.5
    """Of a reply that is the blocks asked for and nothing else."""
    mapping_weight: Weight = 0.5
    """Of an answer that is a JSON object with every mark of the first photo and legal values."""
    unknown_key: Weight = 0.5
    """Taken from r_match, over n, for each key that names no mark."""
    one_to_one: bool = False
    """Two marks that are told the same partner are both wrong."""
    paper: bool = False
    """The paper's reward: match, blocks and mapping weigh 1 each, whatever the weights above are."""

    @model_validator(mode="after")
    def _check(self) -> MatchReward:
        if self.paper and self.one_to_one:
            raise ValueError("reward.one_to_one is not the paper's reward: set reward.paper=false, or leave it out")
        return self

    def weights(self) -> dict[str, float]:
        chosen = (self.match_weight, self.blocks_weight, self.mapping_weight)
        named = dict(zip(("match", "blocks", "mapping"), (1.0, 1.0, 1.0) if self.paper else chosen, strict=True))
        return named | dict.fromkeys(MEASURED, 0.0)


@dataclass(frozen=True)
class Target:
    """gold: of every mark of the first photo, from 1 on, the partner's number or 0. second: marks of the second."""

    gold: tuple[int, ...]
    second: int
    thinking: bool


def score_reply(text: str, target: Target, reward: MatchReward) -> Score:
    """Judge any text."""
    gold = dict(enumerate(target.gold, start=1))
    read = read_reply(text, len(gold), target.second, target.thinking)
    counts = Counts.of(read.pairs, gold)
    right = Counts.of(without_shared(read.pairs), gold).right if reward.one_to_one else counts.right
    match = max(0.0, (right - reward.unknown_key * read.unknown) / len(gold))
    terms = {"match": match, "blocks": float(read.blocks), "mapping": float(read.whole)}
    terms |= {name: float(getattr(counts, name)) for name in MEASURED}
    reasons = read.problems if match == 1 else (*read.problems, "match:wrong_marks")
    return Score(terms, reasons=reasons, answer=write_pairs(read.pairs) if read.pairs else None)
