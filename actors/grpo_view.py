"""What a running GRPO stage shows of itself, and what of it can be scaled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from actors.actor_pool import ActorPool
from actors.actor_set import ActorSet
from actors.placement import Need, reward_resources, rollout_resources
from hatch_ray.config import Config


@dataclass(frozen=True)
class StageStatus:
    """Where the stage's loop is: part of status.json under these names."""

    phase: str
    engines_version: int
    sampled_steps: int
    set_aside: int
    """Samples that are left out of the rest of the run."""
    tokens_per_s: float | None
    """Of the last step that was learned, like the two below."""
    staleness: float | None
    reward_total: float | None


class GrpoView:
    """The stage as `actors.live.Live` sees it, from a thread of its own. Reads, and changes nothing.

    pools: by role, "rollout" and "reward"; waits: seconds to each of the newest scores; status: asked for at each beat.
    """

    def __init__(
        self,
        config: Config,
        pools: Mapping[str, ActorPool],
        waits: Sequence[float],
        learner_nodes: Sequence[str],
        status: Callable[[], StageStatus],
    ) -> None:
        self.config, self.pools, self.waits, self.stage_status = config, pools, waits, status
        hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
        self.learner_hosts = [hosts.get(node, node) for node in learner_nodes]

    def scalable(self) -> dict[str, tuple[ActorSet, Need]]:
        """Role -> its actors, and what one more takes."""
        return {
            "rollout": (self.pools["rollout"].actors, Need("rollout", 1, rollout_resources(self.config))),
            "reward": (self.pools["reward"].actors, Need("reward_actors", 1, reward_resources(self.config))),
        }

    def refusal(self, role: str) -> str | None:
        """Why a role cannot be scaled at all."""
        if role == "rollout" and self.config.colocated:
            return "colocated engines are as many as the learner's workers"
        return None

    def status(self) -> dict[str, Any]:
        """The stage's part of status.json."""
        workers, waits = self.config.learner.workers, sorted(self.waits)
        learner = {"role": "learner", "alive": workers, "wanted": workers, "nodes": dict(Counter(self.learner_hosts))}
        return asdict(self.stage_status()) | {
            "roles": [*(role_status(role, pool.actors) for role, pool in self.pools.items()), learner],
            "queue": {role: pool.waiting for role, pool in self.pools.items()},
            "reward_wait_seconds": {f"p{q}": round(waits[len(waits) * q // 100], 4) for q in (50, 95) if waits},
        }


def role_status(role: str, actors: ActorSet) -> dict[str, Any]:
    """How many actors, on which hosts, and what befell them."""
    return {
        "role": role,
        "alive": len(actors),
        "wanted": actors.target,
        "starting": len(actors.starting),
        "replaced": actors.replaced,
        "nodes": dict(Counter(place.host for place in list(actors.places.values()))),
        "trouble": actors.trouble,
    }
