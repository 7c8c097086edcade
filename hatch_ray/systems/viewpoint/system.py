"""Viewpoint learning as a system: two photos and a question in; a thought and an option's letter out.

Recipe (arXiv 2511.01618): SFT on bare answers with a share of written-out thoughts, then GRPO on other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hatch_ray.config import Config
from hatch_ray.protocol.prompt import Mode, sample_prompt
from hatch_ray.protocol.response import Response, parse_response
from hatch_ray.rewards.score import Score
from hatch_ray.sample import Sample
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System
from hatch_ray.systems.defaults import claims_of_terms, constant_replies
from hatch_ray.systems.viewpoint.config import ViewpointConfig
from hatch_ray.systems.viewpoint.questions import LETTERS, TYPES
from hatch_ray.systems.viewpoint.reward import WEIGHTS, Target, score_reply
from hatch_ray.systems.words import Shown, Words

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations

LEFT = TYPES["ego_translation"].options[0]


class Viewpoint(System):
    Config: ClassVar[type[Config]] = ViewpointConfig
    config: ViewpointConfig
    answer_forms = ("letter", "number")
    stages = (
        Stage("view_sft", "sft", "View SFT: which way the camera went and turned", data="views"),
        Stage("grpo", "grpo", "GRPO: thoughts that lead to the right answer"),
    )
    words = Words(
        shown={
            "format": Shown(digits=2),
            "off_deg": Shown("off (deg)", "error, °", "error of the angle, degrees", "{:.0f}° off", 1),
        },
        medians=("errors", "angles that were read"),
        labels={"view_sft": "after view SFT", "one_side": "always left", "final_turned_round": "final, turned"},
    )

    def mode(self, sample: Sample) -> Mode:
        """Samples that teach a bare answer are asked for it; all others for a thought first."""
        return "direct" if sample.meta.get("direct") else "language"

    def weights(self) -> dict[str, float]:
        return WEIGHTS

    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        from hatch_ray.systems.viewpoint.dataset import build_views  # reward actors need none of it

        mixed = section == self.stage("view_sft").data and split == "train"
        build_views(getattr(self.config, section), self.config.seed, split, out, report, mixed)

    def prompt(self, sample: Sample, stage: str) -> Messages:
        return sample_prompt(sample, self.mode(sample), self.config.model.template)

    def gold(self, sample: Sample, stage: str) -> str:
        answer = f"<answer>{sample.answer}</answer>"
        return answer if self.mode(sample) == "direct" else f"<think>{sample.meta['thought']}</think>{answer}"

    def target(self, sample: Sample, stage: str) -> Target:
        return Target(
            sample.answer, sample.answer_form, len(sample.views), self.mode(sample),
            sample.task == "rotation_degrees", self.config.reward.strict,
            abs(float(sample.meta.get("yaw_deg", 0.0))),
        )  # fmt: skip

    def score(self, text: str, target: Target) -> Score:
        return score_reply(text, target)

    def read(self, text: str, n_views: int, stage: str) -> Response:
        return parse_response(text, n_views, "language")

    def blind_replies(self, samples: Sequence[Sample]) -> dict[str, list[str]]:
        """ "constant": the best reply of a type. "one_side": always the left one, which half of the pairs went or
        turned to: what a model earns that has learnt that the camera moves, and looks at nothing.
        """
        constant = constant_replies(self, samples)
        sides = []
        for sample, reply in zip(samples, constant, strict=True):
            options = sample.meta.get("options") or ()
            letter = next((LETTERS[place] for place, text in enumerate(options) if text == LEFT), None)
            sides.append(f"<think>It went left.</think><answer>{letter}</answer>" if letter else reply)
        return {"constant": constant, "one_side": sides}

    def controls(self, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        from hatch_ray.systems.viewpoint.controls import TURNED_ROUND, turned_round  # reward actors need none of it

        return {TURNED_ROUND: [turned_round(sample) for sample in samples]}

    def claims(self, found: Evaluations) -> list[Claim]:
        from hatch_ray.systems.viewpoint.controls import claims  # reward actors need none of it

        return [*claims_of_terms(self, found), *claims(found)]

    def rates(self) -> dict[str, str]:
        grpo = self.config.grpo
        return {
            "format": f"lower grpo.lr ({grpo.lr:g}) or grpo.temperature ({grpo.temperature:g}), raise "
            f"views.think_share ({self.config.views.think_share:g}); see the reasons format:... in samples/grpo.jsonl"
        }
