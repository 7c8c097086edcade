"""Reward actors: verifiers on CPUs. They see text and targets, never pixels or weights, and import no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.pools import Failed, Loss, Pool
from hatch_ray.config import Config, RewardConfig
from hatch_ray.protocol.response import parse_response
from hatch_ray.rewards.score import RewardTarget, score_reply

CHUNK = 16
"""Replies judged in one call."""

Job = tuple[str, RewardTarget]


class RewardJudge:
    """Judges replies with the reward of eq. 8. `RewardActor` is this class as a Ray actor."""

    def __init__(self, reward: RewardConfig) -> None:
        self.reward = reward

    def ready(self) -> bool:
        """Answers once the judge is up."""
        return True

    def score_many(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Each reply's `Score` as a dictionary, with the "plans" that were read: [{"from", "to", "action"}]."""
        return [self._score(text, target) for text, target in jobs]

    def _score(self, text: str, target: RewardTarget) -> dict[str, Any]:
        score = score_reply(text, target, self.reward).to_dict()
        plans = parse_response(text, target.n_views, target.mode).plans
        score["plans"] = [
            {"from": i, "to": j, "action": [{name: value} for name, value in atoms]}
            for (i, j), atoms in sorted(plans.items())
        ]
        return score


class JudgePool(Pool):
    """`reward_actors.actors` verifiers."""

    def __init__(self, config: Config, on_loss: Callable[[Loss], None] = lambda loss: None) -> None:
        actor = ray.remote(RewardJudge).options(num_cpus=config.reward_actors.cpus)
        super().__init__(
            "reward judge", lambda: actor.remote(config.reward), config.reward_actors.actors, on_loss=on_loss
        )

    def score(self, jobs: Sequence[Job], chunk: int = CHUNK) -> list[dict[str, Any] | Failed]:
        """Scores of all replies, in order; `Failed` where every judge failed. A free judge takes the next chunk."""
        return self.map(jobs, lambda judge, part: judge.score_many.remote(part), chunk)
