"""Reward actors: verifiers on CPUs. They see text and targets, never pixels or weights, and import no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from actors.deadlines import dispatch
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


def start_judges(config: Config) -> list[Any]:
    """Start `reward_actors.actors` verifiers."""
    actor = ray.remote(RewardJudge).options(num_cpus=config.reward_actors.cpus)
    return [actor.remote(config.reward) for _ in range(config.reward_actors.actors)]


def score_all(judges: Sequence[Any], jobs: Sequence[Job], chunk: int = CHUNK) -> list[dict[str, Any]]:
    """Scores of all replies, in order; a free judge takes the next chunk."""
    chunks = [list(jobs[start : start + chunk]) for start in range(0, len(jobs), chunk)]
    parts = dispatch(judges, chunks, lambda judge, part: judge.score_many.remote(part), "rewards")
    return [score for part in parts for score in part]
