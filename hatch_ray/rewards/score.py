"""The total reward (eq. 8) with everything that explains it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hatch_ray.config_sections import RewardConfig
from hatch_ray.protocol.prompt import Mode, reply_mode
from hatch_ray.protocol.response import parse_response
from hatch_ray.rewards.action import PairScore, score_plans
from hatch_ray.rewards.answer import score_answer
from hatch_ray.sample import AnswerForm, PairPlan, Sample


@dataclass(frozen=True)
class RewardTarget:
    """What a verifier needs of a sample: small, picklable, no pixels."""

    sample_id: str
    n_views: int
    answer: str
    answer_form: AnswerForm
    plans: tuple[PairPlan, ...]
    mode: Mode = "actions"

    @classmethod
    def from_sample(cls, sample: Sample, mode: Mode = "actions") -> RewardTarget:
        return cls(sample.id, len(sample.views), sample.answer, sample.answer_form, sample.plans, mode)


@dataclass(frozen=True)
class Score:
    """One reply judged. Every term lies in [0, 1]; total is their weighted sum (eq. 8).

    action   None when no actions are due (language or direct mode, one view): the term is then left out of the total.
    d_t, d_r mean errors over the pairs that had a readable plan, metres and degrees; None when none had.
    reasons  why a term is 0 or the format is wrong, as "term:name", for counting.
    """

    total: float
    format: float
    action: float | None
    answer: float
    d_t: float | None
    d_r: float | None
    reasons: tuple[str, ...]
    pairs: tuple[PairScore, ...]
    parsed_answer: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def score_reply(text: str, target: RewardTarget, reward: RewardConfig) -> Score:
    """Parse and judge one reply."""
    response = parse_response(text, target.n_views, target.mode)
    answer, answer_reason = score_answer(response.answer, target.answer, target.answer_form)
    reasons = [f"format:{name}" for name in response.problems]
    if answer_reason:
        reasons.append(f"answer:{answer_reason}")
    pairs: list[PairScore] = []
    action: float | None = None
    if reply_mode(target.mode, target.n_views) == "actions":
        pairs = score_plans(response.plans, target.plans, reward.tau_t, reward.tau_r, reward.punish_stop)
        action = sum(pair.reward for pair in pairs) / len(pairs)
        reasons += dict.fromkeys(f"action:{pair.reason}" for pair in pairs if pair.reason)
    format_term = float(response.format_ok)
    total = reward.answer_weight * answer + reward.format_weight * format_term
    if action is not None:
        total += reward.action_weight * action
    return Score(
        total=total,
        format=format_term,
        action=action,
        answer=answer,
        d_t=_mean([pair.d_t for pair in pairs]),
        d_r=_mean([pair.d_r for pair in pairs]),
        reasons=tuple(reasons),
        pairs=tuple(pairs),
        parsed_answer=response.answer,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
