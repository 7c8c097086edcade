"""A system: a task that is taught, in one place. Its stages, data, prompt, gold reply, score, and order of samples.

Engines, reward actors, learner, recovery, evaluation, service and report ask the system of the run and know no task
themselves. HATCH is `hatch_ray.systems.hatch`; docs/your-own-system.md makes one in a file of its own.

    config: system: hatch, or module:CLASS  ->  systems.load_system(name)  ->  CLASS(config)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hatch_ray.config import Config
from hatch_ray.data.store import Sampler, Shuffled
from hatch_ray.data.store import Split as Split
from hatch_ray.protocol.response import Response
from hatch_ray.rewards.score import TOTAL, Score
from hatch_ray.sample import Sample
from hatch_ray.systems.defaults import claims_of_terms, constant_replies
from hatch_ray.systems.words import Words

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations

Messages = list[dict[str, Any]]
"""Chat messages for `apply_chat_template`, one {"type": "image"} a view, in the order of the views."""
Progress = Callable[[int, int], None]
"""Called with (samples made, samples asked for)."""


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    name   its folder RUN/<name>, its entry in progress.json, and the section of the config with its settings.
    kind   what trains: pasta (image encoder), sft (gold replies), grpo (rewards; at most one, called "grpo").
    title  for people: "QA SFT: the answers"; what stands before the colon is the short form.
    data   section of the config (a `DataConfig`) that says which samples it learns from.
    """

    name: str
    kind: Literal["pasta", "sft", "grpo"]
    title: str
    data: str = "data"

    @property
    def short(self) -> str:
        """ "QA SFT" of "QA SFT: the answers"."""
        return self.title.partition(":")[0]


class System(ABC):
    """What a system defines; what is not abstract has a default. One instance a process, which keeps no other state.

    Config        the config's class: a `Config` with a section for each stage, and for settings of its own.
    answer_forms  what `Sample.answer_form` may be.
    measure       the term by which runs are compared on one scale: how much is right.
    words         how tables and report show its terms, measures and evaluations.
    """

    Config: ClassVar[type[Config]]
    stages: ClassVar[tuple[Stage, ...]]
    answer_forms: ClassVar[tuple[str, ...]]
    measure: ClassVar[str] = TOTAL
    words: ClassVar[Words] = Words()

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The reward's terms, in order, and their weights: the total is the weighted sum of the terms that are due."""

    @abstractmethod
    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        """Make one split of a stage's data: write a dataset (`data.writer`) at `out`. Raises ValueError."""

    def check(self, section: str) -> None:  # noqa: B027 - by default nothing is looked at
        """Refuse a section of data that cannot be built, before anything is made. Raises ValueError."""

    def evaluated(self) -> str:
        """The section whose held-out samples are asked: the last stage's."""
        return self.sections()[-1]

    @abstractmethod
    def prompt(self, sample: Sample, stage: str) -> Messages:
        """What the model of a stage is asked. Training, evaluation and the service all ask this way."""

    @abstractmethod
    def gold(self, sample: Sample, stage: str) -> str:
        """The reply that a stage of kind sft teaches."""

    @abstractmethod
    def target(self, sample: Sample, stage: str) -> Any:
        """What `score` needs of a sample: small and picklable, no pixels."""

    @abstractmethod
    def score(self, text: str, target: Any) -> Score:
        """Judge one reply. Runs in reward actors, on any text, in milliseconds; raises nothing."""

    def sampler(self, samples: Sequence[Sample]) -> Sampler:
        """Which of a stage's training data each step of GRPO asks."""
        return Shuffled(self.config, samples)

    def ladders(self) -> dict[str, tuple[str, ...]]:
        """The numbers of the sampler's own `standing()` that people follow, by name, and the words for their 0, 1, ..;
        () for a share. Every step's metrics have all of `standing()`; `hatch status` and the report show these.
        """
        return {}

    def read(self, text: str, n_views: int, stage: str) -> Response:
        """What the service reads in a reply to `n_views` images: by default, the whole text is the answer."""
        return Response(answer=text.strip() or None, problems=() if text.strip() else ("empty_answer",))

    def writes_plans(self, stage: str) -> bool:
        """Whether a stage's model writes camera motions, whose consistency the service tells (`Response.plans`)."""
        return False

    def grammar(self, n_views: int, form: str, stage: str, options: int, fits: Callable[[str], bool]) -> str:
        """EBNF of a reply, for requests that ask for a constrained one. fits: whether a text is short enough.

        Raises ValueError where no reply fits, or the system has no grammar.
        """
        raise ValueError(f"the system {self.config.system} has no grammar for constrained replies")

    def blind_replies(self, samples: Sequence[Sample]) -> dict[str, list[str]]:
        """What could be replied without looking, by name, one a sample: "constant" stands beside every evaluation."""
        return {"constant": constant_replies(self, samples)}

    def controls(self, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        """Other forms of the held-out samples, by name, that the final model answers too: RUN/eval/final_NAME."""
        return {}

    def claims(self, found: Evaluations) -> list[Claim]:
        """What the evaluations of a run are to show, each claim judged by its 95 % interval."""
        return claims_of_terms(self, found)

    def rates(self) -> dict[str, str]:
        """Terms that are rates of well-formed replies, and what usually helps: a run warns when one falls."""
        return {}

    def terms(self) -> list[str]:
        """The names of the reward's terms and of their sum, in order."""
        return [*self.weights(), TOTAL]

    def sections(self) -> list[str]:
        """The sections of the config that the run's stages take their data from, in the order of the stages."""
        return list(dict.fromkeys(stage.data for stage in self.stages if stage.name in self.config.stages))

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]
