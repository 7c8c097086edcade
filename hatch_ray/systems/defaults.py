"""What a system says of its runs where it does not say it itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hatch_ray.sample import Sample

if TYPE_CHECKING:
    from hatch_ray.evaluation.findings import Claim, Evaluations
    from hatch_ray.systems.base import System

CONSTANTS_TRIED = 64
"""Gold replies of a task that are tried as its constant one."""


def constant_replies(system: System, samples: Sequence[Sample]) -> list[str]:
    """For every task the one gold reply of the last stage that earns most: one reply a sample."""
    stage = system.stages[-1].name
    targets = [system.target(sample, stage) for sample in samples]
    golds = [system.gold(sample, stage) for sample in samples]
    replies = list(golds)
    for task in {sample.task for sample in samples}:
        places = [place for place, sample in enumerate(samples) if sample.task == task]
        tried = list(dict.fromkeys(golds[place] for place in places))[:CONSTANTS_TRIED]
        earned = {text: sum(system.score(text, targets[p]).total(system.weights()) for p in places) for text in tried}
        for place in places:
            replies[place] = max(tried, key=earned.__getitem__)
    return replies


def claims_of_terms(system: System, found: Evaluations) -> list[Claim]:
    """Of every term: GRPO (where the system has it) raises it, and another sample's images cost some of it."""
    terms, looks = system.weights(), "It looks: another sample's images cost"
    trained = terms if any(stage.kind == "grpo" for stage in system.stages) else ()
    raised = [found.raised(f"GRPO raises the mean {name} reward", name) for name in trained]
    return raised + [found.looks(f"{looks} {name} reward", name) for name in terms]
