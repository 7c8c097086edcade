"""A step's experience: its samples become prompts, replies, and groups with their rewards.

    questions -> engines -> rewards -> Batch

Samples that fail every engine or reward actor, or get a score that is no score, are set aside, from then on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from actors.experience.batch import Batch
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


class Collector:
    """Makes the batches of a GRPO stage. `engines` and `rewards` are there once the stage has started them."""

    engines: EnginePool
    rewards: RewardActors

    def __init__(self, config: Config, questions: Questions, ledger: Ledger, recovery: Recovery, spans: Spans) -> None:
        self.config, self.questions = config, questions
        self.ledger, self.recovery, self.spans = ledger, recovery, spans
        self.sampling = Sampling(config.grpo.group_size, config.grpo.temperature, config.grpo.max_new_tokens)

    def collect(self, step: int) -> Batch:
        """Ask, sample and reward a step."""
        start = time.monotonic()
        samples, requests = self.questions.prepare(step)
        prepared = time.monotonic()
        rollouts = self._sample(step, samples, requests)
        sampled = time.monotonic()
        with self.spans.at(step, "reward"):
            rewarded = self.rewards.reward(samples, requests, rollouts)
        places = [place for place, rollout in rollouts.items() for _ in rollout.replies]
        self.spans.work(step, "reward", self.rewards.pool, places)
        good = self._without_failed(step, samples, rewarded)
        seconds = {
            "seconds_prepare": prepared - start,
            "seconds_generate": sampled - prepared,
            "seconds_reward": time.monotonic() - sampled,
            "processed_per_image": self.questions.maker.processed / self.questions.maker.unique,
        }
        of = tuple(samples[place] for place in good)
        groups, scores = tuple(one.group for one in good.values()), tuple(one.scores for one in good.values())
        return Batch(step, tuple(good), of, groups, scores, seconds)

    def _sample(self, step: int, samples: Sequence[Sample], requests: Sequence[Request]) -> dict[int, Rollout]:
        """The replies to each place's prompt, those set aside left out."""
        known = self.ledger.aside
        places = [place for place, sample in enumerate(samples) if sample.id not in known]
        for place in sorted(set(range(len(samples))) - set(places)):
            self._set_aside(step, place, samples[place], "set aside at an earlier step")
        with self.spans.at(step, "generate"):
            found = self.engines.try_generate([requests[place] for place in places], self.sampling)
        self.spans.work(step, "rollout", self.engines.pool, places)
        return self._without_failed(step, samples, dict(zip(places, found, strict=True)))

    def _without_failed(self, step: int, samples: Sequence[Sample], found: dict[int, T | Failed]) -> dict[int, T]:
        """What was made for each place; the samples of those that failed are set aside."""
        good: dict[int, T] = {}
        for place, one in found.items():
            if isinstance(one, Failed):
                self._set_aside(step, place, samples[place], one.reason)
            else:
                good[place] = one
        return good

    def _set_aside(self, step: int, place: int, sample: Sample, reason: str) -> None:
        if self.ledger.set_aside(step, step * self.config.grpo.prompts_per_step + place, sample.id, reason):
            known = self.questions.sampler.known
            self.recovery.set_aside(sample.id, reason, len(self.ledger.aside), len(known))
