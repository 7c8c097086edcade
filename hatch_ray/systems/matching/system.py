"""Wide-baseline matching as a system: two photos with numbered marks in; which shows the same place, as JSON, out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hatch_ray.config import Config
from hatch_ray.data.store import Sampler
from hatch_ray.protocol.response import Response
from hatch_ray.rewards.score import Score
from hatch_ray.sample import Sample
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System
from hatch_ray.systems.matching.blind import LABELS, blind_pairs
from hatch_ray.systems.matching.prompt import build_text
from hatch_ray.systems.matching.reply import read_reply, write_pairs, write_reply
from hatch_ray.systems.matching.reward import Target, score_reply
from hatch_ray.systems.matching.settings import MatchingConfig
from hatch_ray.systems.words import Shown, Words

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations

MOST_MARKS = 999
"""Of a photo that somebody asks about: how many it has is not known."""


class Matching(System):
    Config: ClassVar[type[Config]] = MatchingConfig
    config: MatchingConfig
    answer_forms = ("matching",)
    stages = (
        Stage("match_sft", "sft", "Match SFT: the form of the answer"),
        Stage("grpo", "grpo", "GRPO: more marks matched"),
    )
    words = Words(
        shown={
            "match": Shown(curve="share of marks told rightly"),
            "f1": Shown("F1", "F1", "F1 of matched pairs"),
            "exact": Shown(curve="share of questions all right"),
        },
        tabled=("match", "f1", "exact"),
        labels=LABELS,
    )

    def thinks(self, stage: str) -> bool:
        """Whether a stage's model is asked to reason first."""
        return self.config.thinking and stage == "grpo"

    def weights(self) -> dict[str, float]:
        return self.config.reward.weights()

    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        from hatch_ray.systems.matching.data import build_matching  # reward actors need none of it

        data = getattr(self.config, section)
        build_matching(data, self.config.seed, split, out, self.config.model.max_pixels, report, self.config.pools)

    def prompt(self, sample: Sample, stage: str) -> Messages:
        text = build_text(sample.question, self.thinks(stage), self.config.model.template)
        return [{"role": "user", "content": [{"type": "image"}] * len(sample.views) + [{"type": "text", "text": text}]}]

    def gold(self, sample: Sample, stage: str) -> str:
        return write_reply(dict(enumerate(sample.meta["gold"], start=1)))

    def target(self, sample: Sample, stage: str) -> Target:
        return Target(tuple(sample.meta["gold"]), int(sample.meta["second"]), self.thinks(stage))

    def score(self, text: str, target: Target) -> Score:
        return score_reply(text, target, self.config.reward)

    def sampler(self, samples: Sequence[Sample]) -> Sampler:
        from hatch_ray.systems.matching.curriculum import make_sampler  # reward actors need none of it

        return make_sampler(self.config, samples)

    def ladders(self) -> dict[str, tuple[str, ...]]:
        from hatch_ray.systems.matching.curriculum import ladders_of  # reward actors need none of it

        return ladders_of(self.config.curriculum)

    def read(self, text: str, n_views: int, stage: str) -> Response:
        """The answer is the object that was read, without its illegal values."""
        found = read_reply(text, MOST_MARKS, MOST_MARKS, self.thinks(stage))
        problems = [problem for problem in found.problems if problem != "mapping:missing_key"]
        answer = write_pairs(found.pairs) if found.pairs else None
        return Response(answer=answer, problems=tuple(problem.partition(":")[2] for problem in problems))

    def blind_replies(self, samples: Sequence[Sample]) -> dict[str, list[str]]:
        targets = [self.target(sample, "match_sft") for sample in samples]
        thought = "<thinking>Blind.</thinking>" if self.thinks(self.stages[-1].name) else ""
        return {name: [thought + write_reply(one) for one in said] for name, said in blind_pairs(targets).items()}

    def claims(self, found: Evaluations) -> list[Claim]:
        return [
            found.raised("GRPO raises the share of marks told rightly", "match"),
            found.raised("GRPO raises the F1 of matched pairs", "f1"),
            found.looks("It looks: another question's photos cost marks", "match"),
        ]

    def rates(self) -> dict[str, str]:
        grpo = self.config.grpo
        return {
            "mapping": f"lower grpo.lr ({grpo.lr:g}) or grpo.temperature ({grpo.temperature:g}), raise grpo.beta "
            f"({grpo.beta:g}) or reward.mapping_weight; see the reasons mapping:... in samples/grpo.jsonl"
        }
