"""A step's experience: its samples become prompts, replies, and groups with their rewards.

    questions -> engines -> rewards -> Batch
        ^------------------------'   other prompts where there is no variance, up to grpo.redraw times

A step that is done again, after a death or an end anywhere in it, comes out alike: its prompts follow from what the
sampler was told of the steps before, from the seed, and from the rewards of its own earlier draws.

Samples that fail every engine or reward actor, or get a score that is no score, are set aside, from then on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from actors.experience.batch import Asked, Batch, without_variance
from actors.experience.ledger import Ledger
from actors.reward.verifier import RewardActors
from actors.rollout.engines import EnginePool
from actors.rollout.prompts import Questions
from actors.runtime.actor_pool import Failed
from actors.runtime.messages import Request, Rollout, Sampling
from actors.runtime.recovery import Recovery
from actors.runtime.spans import Spans
from hatch_ray.config import Config
from hatch_ray.sample import Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """Prompts of a step that are asked together. number: 0, or for the how manieth time others are drawn; places: of
    the step, one a sample.
    """

    step: int
    number: int
    places: Sequence[int]
    samples: Sequence[Sample]
    requests: Sequence[Request]


class Collector:
    """Makes the batches of a GRPO stage. `engines` and `rewards` are there once the stage has started them."""

    engines: EnginePool
    rewards: RewardActors

    def __init__(self, config: Config, questions: Questions, ledger: Ledger, recovery: Recovery, spans: Spans) -> None:
        self.config, self.questions = config, questions
        self.ledger, self.recovery, self.spans = ledger, recovery, spans
        self.sampling = Sampling(config.grpo.group_size, config.grpo.temperature, config.grpo.max_new_tokens)

    def collect(self, step: int) -> Batch:
        """Ask, sample and reward a step, and other prompts in place of those without variance."""
        redraw, maker = self.config.grpo.redraw, self.questions.maker
        made = dict.fromkeys(("seconds_prepare", "seconds_generate", "seconds_reward"), 0.0)
        asked: list[Asked] = []
        seen: set[str] = set()
        for number in range(1 + redraw):
            places = without_variance(asked) if number else range(self.config.grpo.prompts_per_step)
            if not places:
                break
            start = time.monotonic()
            if number:
                samples, requests = self.questions.others(step, number, seen, len(places))
            else:
                samples, requests = self.questions.prepare(step)
            made["seconds_prepare"] += time.monotonic() - start
            if not samples:  # all were asked
                break
            seen |= {sample.id for sample in samples}
            asked += self._ask(Draw(step, number, places[: len(samples)], samples, requests), made)
        redrawn = len(asked) - len({one.place for one in asked})
        made |= {"redrawn_groups": float(redrawn)} if redraw else {}
        return Batch(step, tuple(asked), made | {"processed_per_image": maker.processed / maker.unique})

    def _ask(self, draw: Draw, made: dict[str, float]) -> list[Asked]:
        """Sample and reward; the seconds are added to `made`."""
        start = time.monotonic()
        rollouts = self._sample(draw)
        sampled = time.monotonic()
        with self.spans.at(draw.step, "reward"):
            rewarded = self.rewards.reward(draw.samples, draw.requests, rollouts)
        places = [draw.places[index] for index, rollout in rollouts.items() for _ in rollout.replies]
        self.spans.work(draw.step, "reward", self.rewards.pool, places)
        good = self._without_failed(draw, rewarded)
        made["seconds_generate"] += sampled - start
        made["seconds_reward"] += time.monotonic() - sampled
        return [
            Asked(draw.places[index], draw.number, draw.samples[index], one.group, one.scores)
            for index, one in good.items()
        ]

    def _sample(self, draw: Draw) -> dict[int, Rollout]:
        """The replies to each prompt, by its number in the draw; those set aside left out."""
        known = self.ledger.aside
        indices = [index for index, sample in enumerate(draw.samples) if sample.id not in known]
        for index in sorted(set(range(len(draw.samples))) - set(indices)):
            self._set_aside(draw, index, "set aside at an earlier step")
        with self.spans.at(draw.step, "generate"):
            if draw.number:
                self.engines.forget()  # a step begins without caches too, as new weights do
            found = self.engines.try_generate([draw.requests[index] for index in indices], self.sampling)
        self.spans.work(draw.step, "rollout", self.engines.pool, [draw.places[index] for index in indices])
        return self._without_failed(draw, dict(zip(indices, found, strict=True)))

    def _without_failed(self, draw: Draw, found: dict[int, T | Failed]) -> dict[int, T]:
        """What was made for each prompt; the samples of those that failed are set aside."""
        good: dict[int, T] = {}
        for index, one in found.items():
            if isinstance(one, Failed):
                self._set_aside(draw, index, one.reason)
            else:
                good[index] = one
        return good

    def _set_aside(self, draw: Draw, index: int, reason: str) -> None:
        sample, place = draw.samples[index].id, draw.step * self.config.grpo.prompts_per_step + draw.places[index]
        if self.ledger.set_aside(draw.step, place, sample, reason, draw.number):
            known = self.questions.sampler.known
            self.recovery.set_aside(sample, reason, len(self.ledger.aside), len(known))
