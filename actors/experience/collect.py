"""A step's experience: its samples become prompts, replies, scores and groups.

    sampler -> prompts -> engines -> reward actors -> checks -> Batch

Samples that fail every engine or reward actor, or get a score that is no score, are set aside, from then on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from actors.experience.batch import Batch, Scores, make_groups
from actors.experience.ledger import Ledger
from actors.reward.verifier import RewardActors
from actors.rollout.engines import EnginePool
from actors.rollout.prompts import PromptMaker
from actors.runtime.actor_pool import Failed
from actors.runtime.messages import Request, Rollout, Sampling
from actors.runtime.recovery import Recovery
from actors.runtime.spans import Spans
from hatch_ray.config import Config
from hatch_ray.rewards.score import check_scores
from hatch_ray.sample import Sample
from hatch_ray.systems.base import Sampler


class Collector:
    """Makes the batches of a GRPO stage. `engines` and `rewards` are there once the stage has started them."""

    engines: EnginePool
    rewards: RewardActors

    def __init__(
        self, config: Config, maker: PromptMaker, sampler: Sampler, ledger: Ledger, recovery: Recovery, spans: Spans
    ) -> None:
        self.config, self.maker, self.sampler = config, maker, sampler
        self.ledger, self.recovery, self.spans = ledger, recovery, spans
        self.sampling = Sampling(config.grpo.group_size, config.grpo.temperature, config.grpo.max_new_tokens)
        self.weights = maker.system.weights()
        self._prepared: tuple[int, list[Sample], list[Request]] | None = None

    def prepare(self, step: int) -> tuple[list[Sample], list[Request]]:
        """A step's samples and prompts, with their images in the object store; kept until they are collected."""
        if self._prepared is None or self._prepared[0] != step:
            with self.spans.at(step, "prepare"):
                per_step = self.config.grpo.prompts_per_step
                samples = self.sampler.samples(step)
                if len(samples) != per_step:
                    raise RuntimeError(f"grpo: the sampler gave {len(samples)} samples for step {step}, not {per_step}")
                seeds = np.random.SeedSequence([self.config.seed, step]).generate_state(per_step)
                made = [self.maker.request(sample, int(seed)) for sample, seed in zip(samples, seeds, strict=True)]
                self._prepared = (step, samples, made)
        return self._prepared[1:]

    def collect(self, step: int) -> Batch:
        """Sample and judge a step."""
        start = time.monotonic()
        samples, requests = self.prepare(step)
        prepared = time.monotonic()
        rollouts = self._sample(step, samples, requests)
        sampled = time.monotonic()
        judged = self._judge(step, samples, rollouts)
        groups = make_groups(
            [requests[place] for place in judged],
            [rollouts[place] for place in judged],
            [score for scores in judged.values() for score in scores],
        )
        seconds = {
            "seconds_prepare": prepared - start,
            "seconds_generate": sampled - prepared,
            "seconds_reward": time.monotonic() - sampled,
            "processed_per_image": self.maker.processed / self.maker.unique,
        }
        of = tuple(samples[place] for place in judged)
        return Batch(step, tuple(judged), of, tuple(groups), tuple(map(tuple, judged.values())), seconds)

    def _sample(self, step: int, samples: Sequence[Sample], requests: Sequence[Request]) -> dict[int, Rollout]:
        """The replies to each place's prompt, those set aside left out."""
        known = self.ledger.aside
        places = [place for place, sample in enumerate(samples) if sample.id not in known]
        for place in sorted(set(range(len(samples))) - set(places)):
            self._set_aside(step, place, samples[place], "set aside at an earlier step")
        with self.spans.at(step, "generate"):
            found = self.engines.try_generate([requests[place] for place in places], self.sampling)
        self.spans.work(step, "rollout", self.engines.pool, places)
        rollouts = {}
        for place, rollout in zip(places, found, strict=True):
            if isinstance(rollout, Failed):
                self._set_aside(step, place, samples[place], rollout.reason)
            else:
                rollouts[place] = rollout
        return rollouts

    def _judge(self, step: int, samples: Sequence[Sample], rollouts: dict[int, Rollout]) -> dict[int, list[Scores]]:
        """The scores of each place's replies, those set aside left out."""
        size, stage = self.sampling.n, self.maker.stage
        targets = {place: self.maker.system.target(samples[place], stage) for place in rollouts}
        jobs = [(reply.text, targets[place]) for place, rollout in rollouts.items() for reply in rollout.replies]
        with self.spans.at(step, "reward"):
            scores = self.rewards.score(jobs)
        self.spans.work(step, "reward", self.rewards.pool, [place for place in rollouts for _ in range(size)])
        judged: dict[int, list[Scores]] = {}
        for number, place in enumerate(rollouts):
            part = scores[number * size : (number + 1) * size]
            good = [score for score in part if not isinstance(score, Failed)]
            failed = next((score.reason for score in part if isinstance(score, Failed)), "")
            failed = failed or "; ".join(check_scores(samples[place].id, good, self.weights))
            if failed:
                self._set_aside(step, place, samples[place], failed)
            else:
                judged[place] = good
        return judged

    def _set_aside(self, step: int, place: int, sample: Sample, reason: str) -> None:
        if self.ledger.set_aside(step, step * self.config.grpo.prompts_per_step + place, sample.id, reason):
            self.recovery.set_aside(sample.id, reason, len(self.ledger.aside), len(self.sampler.known))
