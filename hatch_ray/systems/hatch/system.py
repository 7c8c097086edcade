"""HATCH as a system: views, question and gold actions in; motion as JSON, then the answer, out. Its reward is eq. 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hatch_ray.config import Config
from hatch_ray.config_sections import RewardConfig
from hatch_ray.protocol.grammar import reply_grammar
from hatch_ray.protocol.prompt import Mode, gold_reply, reply_mode, sample_prompt
from hatch_ray.protocol.response import Response, parse_response
from hatch_ray.rewards.score import Score
from hatch_ray.rewards.terms import PairScore, score_answer, score_plans
from hatch_ray.sample import ANSWER_FORMS, PairPlan, Sample
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System
from hatch_ray.systems.hatch.config import HatchConfig
from hatch_ray.systems.words import Shown, Words

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations


class Hatch(System):
    Config: ClassVar[type[Config]] = HatchConfig
    config: HatchConfig
    answer_forms = ANSWER_FORMS
    stages = (
        Stage("pasta", "pasta", "PaStA: the image encoder learns which patches match"),
        Stage("qa_sft", "sft", "QA SFT: the answers"),
        Stage("cold_start", "sft", "Cold start: the form of actions and answer"),
        Stage("grpo", "grpo", "GRPO: better actions and answers"),
    )
    words = Words(
        shown={
            "format": Shown(digits=2),
            "d_t": Shown("d_t (m)", "error, m", "error of place, metres", "off by {:.2f} m", 2),
            "d_r": Shown("d_r (deg)", "error, °", "error of direction, degrees", "{:.0f}°", 1),
        },
        tabled=("action", "answer"),
        medians=("errors", "readable plans"),
        labels={"qa_sft": "QA SFT, direct", "cold_start": "after cold start", "still": "do not move"},
    )

    def mode(self, stage: str) -> Mode:
        """How a stage's model replies: QA SFT learns answers alone, every other stage reasons first."""
        return "direct" if stage == "qa_sft" else self.config.model.reasoning

    def weights(self) -> dict[str, float]:
        return reward_weights(self.config.reward)

    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        from hatch_ray.data.build import build_dataset  # reward actors need none of it

        build_dataset(getattr(self.config, section), self.config.seed, split, out, report)

    def prompt(self, sample: Sample, stage: str) -> Messages:
        return sample_prompt(sample, self.mode(stage), self.config.model.template)

    def gold(self, sample: Sample, stage: str) -> str:
        return gold_reply(sample, self.mode(stage))

    def target(self, sample: Sample, stage: str) -> RewardTarget:
        return RewardTarget.from_sample(sample, self.mode(stage))

    def blind_replies(self, samples: Sequence[Sample]) -> dict[str, list[str]]:
        from hatch_ray.systems.hatch.baselines import constant_replies, still_replies  # reward actors need none of it

        return {"constant": constant_replies(samples, self.config.reward), "still": still_replies(samples)}

    def claims(self, found: Evaluations) -> list[Claim]:
        from hatch_ray.systems.hatch.claims import claims  # reward actors need none of it

        return claims(found)

    def rates(self) -> dict[str, str]:
        grpo = self.config.grpo
        return {
            "format": f"lower grpo.lr ({grpo.lr:g}) or grpo.temperature ({grpo.temperature:g}), raise grpo.beta "
            f"({grpo.beta:g}) or reward.format_weight; see the reasons format:... in samples/grpo.jsonl"
        }

    def read(self, text: str, n_views: int, stage: str) -> Response:
        return parse_response(text, n_views, self.mode(stage))

    def writes_plans(self, stage: str) -> bool:
        return self.mode(stage) == "actions"

    def grammar(self, n_views: int, form: str, stage: str, options: int, fits: Callable[[str], bool]) -> str:
        return reply_grammar(n_views, form, self.mode(stage), options, fits)

    def score(self, text: str, target: RewardTarget) -> Score:
        return score_reply(text, target, self.config.reward)


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
