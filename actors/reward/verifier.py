"""Rewards: what each reply earns, and its advantage over its group.

    replies -> reward actors -> checks -> groups with advantages

Reward actors are verifiers on CPUs. They see text and targets, never pixels or weights, and import no torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.reward.scaling import QueueRule
from actors.runtime.actor_pool import ActorPool, Failed, Work
from actors.runtime.actor_set import ActorSet, Loss
from actors.runtime.messages import Group, Request, Rollout
from actors.runtime.placement import Need, actor_options, reward_resources
from actors.runtime.resources import room_for
from hatch_ray.config import Config
from hatch_ray.rewards.score import TOTAL, check_scores
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of

Job = tuple[str, Any]
"""A reply, and what the system needs to judge it (`System.target`)."""
Scores = dict[str, Any]
"""One reply's `rewards.score.Score.row`."""


@dataclass(frozen=True)
class Rewarded:
    """A group, and the scores of its replies."""

    group: Group
    scores: tuple[Scores, ...]


class Verifier:
    """Scores replies as the run's system says. One reward actor is this class as a Ray actor."""

    def __init__(self, config: Config) -> None:
        self.system = system_of(config)
        self.weights = self.system.weights()

    def score_many(self, jobs: Sequence[Job]) -> list[Scores]:
        """The scores of each reply."""
        return [self.system.score(text, target).row(self.weights) for text, target in jobs]


class RewardActors:
    """`reward_actors.actors` verifiers at the start, then by queue between `min` and `max`, or by hand.

    room(more) says how many of these find a place: what the cluster has, or all where an autoscaler makes room.
    """

    def __init__(
        self,
        config: Config,
        on_loss: Callable[[Loss], None] | None = None,
        verifier: type[Verifier] = Verifier,
        room: Callable[[int], int] | None = None,
    ) -> None:
        self.system, settings = system_of(config), config.reward_actors
        actor = ray.remote(verifier).options(**actor_options(reward_resources(config)))
        actors = ActorSet("reward actor", lambda: actor.remote(config), on_loss=on_loss)
        actors.begin(settings.actors)
        self.pool = ActorPool(actors)
        self.rule = QueueRule(settings.min or settings.actors, settings.max or settings.actors, settings.queue_seconds)
        self.waits: deque[float] = deque(maxlen=4096)
        """Seconds from the end of a batch's sampling to each score of it, the newest."""
        each, waits_for_nodes = reward_resources(config), config.deadlines.nodes_seconds
        self._room = room or (lambda more: more if waits_for_nodes else room_for(Need("reward_actors", more, each)))
        self._asked_for_room = 0.0

    def reward(
        self, samples: Sequence[Sample], requests: Sequence[Request], rollouts: Mapping[int, Rollout]
    ) -> dict[int, Rewarded | Failed]:
        """The group of each rollout, by its place in the step, which is that of its sample and request.

        `Failed` where every actor failed on one of its replies, or gave a score that is none.
        """
        targets = {place: self.system.target(samples[place], "grpo") for place in rollouts}
        jobs = [(reply.text, targets[place]) for place, rollout in rollouts.items() for reply in rollout.replies]
        scores, weights = iter(self.score(jobs)), self.system.weights()
        earned: dict[int, list[Scores]] = {}
        failed: dict[int, Failed] = {}
        for place, rollout in rollouts.items():
            found = [next(scores) for _ in rollout.replies]
            good = [score for score in found if not isinstance(score, Failed)]
            if len(good) < len(found):
                failed[place] = next(score for score in found if isinstance(score, Failed))
            elif problems := check_scores(samples[place].id, good, weights):
                failed[place] = Failed("; ".join(problems))
            else:
                earned[place] = good
        asked, said = [requests[place] for place in earned], [rollouts[place] for place in earned]
        groups = iter(make_groups(asked, said, [score for good in earned.values() for score in good]))
        return {
            place: failed[place] if place in failed else Rewarded(next(groups), tuple(earned[place]))
            for place in rollouts
        }

    def score(self, jobs: Sequence[Job], chunk: int | None = None) -> list[Scores | Failed]:
        """Scores of all replies, in order; `Failed` where every actor failed. A free one takes the next chunk."""
        scores = self.pool.map(
            jobs, lambda actor, part: actor.score_many.remote(part), chunk or self.rule.part(len(jobs)),
            watch=self._watch, done=self._done,
        )  # fmt: skip
        self.pool.actors.aim(self.rule.batch_done(self.pool.actors.target))
        return scores

    def _watch(self, running: Sequence[tuple[float, int]]) -> None:
        actors, now = self.pool.actors, time.monotonic()
        wanted = self.rule.wanted(self.pool.waiting, actors.target, running)
        if actors.by_hand or wanted <= actors.target or now - self._asked_for_room < 1.0:
            return
        self._asked_for_room = now
        there = len(actors) + len(actors.starting)
        if wanted > there:
            actors.aim(max(actors.target, there + min(wanted - there, self._room(wanted - there))))

    def _done(self, work: Work) -> None:
        items = len(work.places)
        self.waits.extend([work.ended - work.issued] * items)
        if work.measured:
            self.rule.measured(items, work.ended - work.began)

    def stop(self) -> None:
        """End the actors and free their resources."""
        self.pool.actors.stop()


def make_groups(requests: Sequence[Request], rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> list[Group]:
    """Join each request with its replies, their rewards (of flat scores, reply by reply) and advantages."""
    import torch  # reward actors need none of it

    from hatch_ray.learning.grpo import group_advantages

    if not rollouts:
        return []
    size = len(rollouts[0].replies)
    rewards = torch.tensor([score["terms"][TOTAL] for score in scores], dtype=torch.float64).view(len(rollouts), size)
    advantages, zero = group_advantages(rewards)
    return [
        Group(request, rollout, rewards[index].numpy(), advantages[index].float().numpy(), bool(zero[index]))
        for index, (request, rollout) in enumerate(zip(requests, rollouts, strict=True))
    ]
