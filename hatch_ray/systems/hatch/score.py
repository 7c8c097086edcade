"""HATCH's reward (eq. 8) of one reply: actions, answer and format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hatch_ray.config_sections import RewardConfig
from hatch_ray.protocol.prompt import Mode, reply_mode
from hatch_ray.protocol.response import parse_response
from hatch_ray.rewards.action import PairScore, score_plans
from hatch_ray.rewards.answer import score_answer
from hatch_ray.rewards.score import Score
from hatch_ray.sample import PairPlan, Sample


@dataclass(frozen=True)
class RewardTarget:
    """What a verifier needs of a sample: small, picklable, no pixels."""

    sample_id: str
    n_views: int
    answer: str
    answer_form: str
    plans: tuple[PairPlan, ...]
    mode: Mode = "actions"

    @classmethod
    def from_sample(cls, sample: Sample, mode: Mode = "actions") -> RewardTarget:
        return cls(sample.id, len(sample.views), sample.answer, sample.answer_form, sample.plans, mode)


def reward_weights(reward: RewardConfig) -> dict[str, float]:
    """lambda_2, lambda_3 and lambda_1 of eq. 8."""
    return {"answer": reward.answer_weight, "format": reward.format_weight, "action": reward.action_weight}


def score_reply(text: str, target: RewardTarget, reward: RewardConfig) -> Score:
    """Parse and judge one reply.

    terms: "answer" and "format", and "action", None when no actions are due (language or direct mode, one view).
    measures: "d_t" and "d_r", mean errors over the pairs that had a readable plan, metres and degrees; None when none
    had. detail: "plans", as read, [{"from", "to", "action"}].
    """
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
    return Score(
        terms={"answer": answer, "format": float(response.format_ok), "action": action},
        measures={"d_t": _mean([pair.d_t for pair in pairs]), "d_r": _mean([pair.d_r for pair in pairs])},
        reasons=tuple(reasons),
        answer=response.answer,
        detail={"plans": [plan_row(i, j, atoms) for (i, j), atoms in sorted(response.plans.items())]},
    )


def plan_row(source: int, target: int, atoms: Any) -> dict[str, Any]:
    """One pair's action list as plain JSON values."""
    return {"from": source, "to": target, "action": [{name: value} for name, value in atoms]}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
