"""Viewpoint learning as a system: two photos and a question in; a thought and an option's letter out.

Recipe (arXiv 2511.01618): SFT on bare answers with a share of written-out thoughts, then GRPO on other data. With
`reward.kind: actions` HATCH's camera actions stand in the thought's place, and their composed pose is rewarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hatch_ray.config import Config
from hatch_ray.protocol.prompt import Mode, format_plans, gold_reply, reply_mode, sample_prompt
from hatch_ray.protocol.response import Response, parse_response
from hatch_ray.rewards.score import Score
from hatch_ray.sample import ANSWER_FORMS, Sample
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System
from hatch_ray.systems.defaults import claims_of_terms, constant_replies
from hatch_ray.systems.viewpoint.config import PUBLISHED, ViewpointConfig, ViewpointData
from hatch_ray.systems.viewpoint.plans import actions_to
from hatch_ray.systems.viewpoint.questions import LETTERS, TYPES
from hatch_ray.systems.viewpoint.reward import ACTION_WEIGHTS, WEIGHTS, Target, score_reply
from hatch_ray.systems.words import Shown, Words

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations

LEFT = TYPES["ego_translation"].options[0]


class Viewpoint(System):
    Config: ClassVar[type[Config]] = ViewpointConfig
    config: ViewpointConfig
    answer_forms = ANSWER_FORMS
    measure = "exact"
    stages = (
        Stage("view_sft", "sft", "View SFT: which way the camera went and turned", data="views"),
        Stage("grpo", "grpo", "GRPO: thoughts that lead to the right answer"),
    )
    words = Words(
        shown={
            "format": Shown(digits=2),
            "letter": Shown(curve="the written answer is right (measured only)"),
            "off_deg": Shown("off (deg)", "error, °", "error of the angle, degrees", "{:.0f}° off", 1),
            "d_t": Shown("d_t (m)", "error, m", "error of place, metres", "off by {:.2f} m", 2),
            "d_r": Shown("d_r (deg)", "error, °", "error of direction, degrees", "{:.0f}°", 1),
        },
        tabled=("format", "exact"),
        medians=("errors", "replies that have them"),
        labels={"view_sft": "after view SFT", "one_side": "always left", "final_turned_round": "final, turned"},
    )

    @property
    def reasoning(self) -> Mode:
        """What stands before the answer where a bare one is not asked for."""
        return "actions" if self.config.reward.kind == "actions" else "language"

    def mode(self, sample: Sample) -> Mode:
        """Samples that teach a bare answer are asked for it, and those of one photo; all others for a thought first."""
        return "direct" if sample.meta.get("direct") else reply_mode(self.reasoning, len(sample.views))

    def weights(self) -> dict[str, float]:
        return WEIGHTS if self.reasoning == "language" else ACTION_WEIGHTS

    def evaluated(self) -> str:
        """The pairs that are asked about: those of SFT, where GRPO's are published questions of another kind."""
        return "views" if self.config.data.kind in PUBLISHED else "data"

    def check(self, section: str) -> None:
        data: ViewpointData = getattr(self.config, section)
        if data.kind in PUBLISHED and data.root is None:
            raise ValueError(f"{section}.kind={data.kind} needs {section}.root=PATH, the folder of its published files")

    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        from hatch_ray.systems.viewpoint.dataset import build_views  # reward actors need none of it
        from hatch_ray.systems.viewpoint.published import build_published

        data: ViewpointData = getattr(self.config, section)
        mixed = section == self.stage("view_sft").data and split == "train"
        if data.kind in PUBLISHED:
            build_published(data, self.config.seed, split, out, report, mixed)
        else:
            build_views(data, self.config.seed, split, out, report, mixed, self.config.model.max_pixels)

    def prompt(self, sample: Sample, stage: str) -> Messages:
        return sample_prompt(sample, self.mode(sample), self.config.model.template)

    def gold(self, sample: Sample, stage: str) -> str:
        mode = self.mode(sample)
        if mode != "language":
            return gold_reply(sample, mode)
        return f"<think>{sample.meta.get('thought', '')}</think><answer>{sample.answer}</answer>"

    def target(self, sample: Sample, stage: str) -> Target:
        reward, mode = self.config.reward, self.mode(sample)
        for_actions = (sample.task, str(sample.meta.get("side", "")), sample.plans, (reward.tau_t, reward.tau_r))
        return Target(
            sample.answer, sample.answer_form, len(sample.views), mode, sample.task == "rotation_degrees",
            reward.strict, abs(float(sample.meta.get("yaw_deg", 0.0))), *(for_actions if mode == "actions" else ()),
        )  # fmt: skip

    def score(self, text: str, target: Target) -> Score:
        return score_reply(text, target)

    def read(self, text: str, n_views: int, stage: str) -> Response:
        return parse_response(text, n_views, self.reasoning)

    def writes_plans(self, stage: str) -> bool:
        return self.reasoning == "actions"

    def blind_replies(self, samples: Sequence[Sample]) -> dict[str, list[str]]:
        """ "constant": the best reply of a type. "one_side": always the left one, which half of the pairs went or
        turned to: what a model earns that has learnt that the camera moves, and looks at nothing.
        """
        constant = constant_replies(self, samples)
        sides = []
        for sample, reply in zip(samples, constant, strict=True):
            options = sample.meta.get("options") or ()
            letter = next((LETTERS[place] for place, text in enumerate(options) if text == LEFT), None)
            sides.append(reply if letter is None else self._left(sample.task, letter))
        return {"constant": constant, "one_side": sides}

    def _left(self, task: str, letter: str) -> str:
        """The reply that says left, and goes there."""
        thought = "<think>It went left.</think>"
        if self.reasoning == "actions":
            thought = f"<action>{format_plans({(0, 1): actions_to(task, 'left')})}</action>"
        return f"{thought}<answer>{letter}</answer>"

    def controls(self, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        from hatch_ray.systems.viewpoint.controls import TURNED_ROUND, turned_round  # reward actors need none of it

        return {TURNED_ROUND: found} if (found := [turned_round(s) for s in samples if "side" in s.meta]) else {}

    def claims(self, found: Evaluations) -> list[Claim]:
        from hatch_ray.systems.viewpoint.controls import claims  # reward actors need none of it

        return [*claims_of_terms(self, found), *claims(found)]

    def rates(self) -> dict[str, str]:
        grpo = self.config.grpo
        return {
            "format": f"lower grpo.lr ({grpo.lr:g}) or grpo.temperature ({grpo.temperature:g}), raise "
            f"views.think_share ({self.config.views.think_share:g}); see the reasons format:... in samples/grpo.jsonl"
        }
