"""HATCH as a system: views, question and gold actions in; motion as JSON, then the answer, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hatch_ray.config import Config
from hatch_ray.config_sections import DataConfig
from hatch_ray.protocol.grammar import reply_grammar
from hatch_ray.protocol.prompt import Mode, gold_reply, sample_prompt
from hatch_ray.protocol.response import Response, parse_response
from hatch_ray.rewards.score import Score
from hatch_ray.rewards.terms import RewardTarget, reward_weights, score_reply
from hatch_ray.sample import ANSWER_FORMS, Sample
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System
from hatch_ray.systems.hatch.config import HatchConfig
from hatch_ray.systems.words import Shown, Words

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations


class Hatch(System):
    Config: ClassVar[type[Config]] = HatchConfig
    config: HatchConfig
    answer_forms = ANSWER_FORMS
    measure = "answer"
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

    def check(self, section: str) -> None:
        from hatch_ray.data.questions import choose_tasks  # reward actors need none of it

        data: DataConfig = getattr(self.config, section)
        if data.kind != "spar":
            choose_tasks(data.tasks, has_objects=data.kind == "rooms")

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
