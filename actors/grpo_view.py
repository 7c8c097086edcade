"""What a running GRPO stage shows of itself, and what of it can be scaled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from actors.actor_pool import ActorPool
from actors.actor_set import ActorSet
from actors.live import Role, Shown
from actors.placement import Need, reward_resources, rollout_resources
from hatch_ray.config import Config


@dataclass(frozen=True)
class StageStatus:
    """Where the stage's loop is, a part of status.json; of the last step that was learned: speed, staleness, reward."""

    phase: str
    engines_version: int
    sampled_steps: int
    set_aside: int
    tokens_per_s: float | None
    staleness: float | None
    reward_total: float | None


def grpo_view(
    config: Config,
    pools: Mapping[str, ActorPool],
    waits: Sequence[float],
    learner_nodes: Sequence[str],
    loop: Callable[[], StageStatus],
) -> Shown:
    """The stage as `actors.live.Live` shows it, from a thread of its own: it reads, and changes nothing.

    pools: "rollout" and "reward"; waits: seconds to each of the newest scores; loop: asked at each heartbeat.
    """
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    workers = config.learner.workers
    learner = {"role": "learner", "alive": workers, "wanted": workers}
    learner["nodes"] = dict(Counter(hosts.get(node, node) for node in learner_nodes))

    def status() -> dict[str, Any]:
        newest = sorted(waits)
        return asdict(loop()) | {
            "roles": [*(role_status(name, pool.actors) for name, pool in pools.items()), learner],
            "queue": {name: pool.waiting for name, pool in pools.items()},
            "reward_wait_seconds": {f"p{q}": round(newest[len(newest) * q // 100], 4) for q in (50, 95) if newest},
        }

    why_not = "colocated engines are as many as the learner's workers" if config.colocated else ""
    rollout = Role(pools["rollout"].actors, Need("rollout", 1, rollout_resources(config)), why_not)
    reward = Role(pools["reward"].actors, Need("reward_actors", 1, reward_resources(config)))
    return Shown(status, {"rollout": rollout, "reward": reward})


def role_status(name: str, actors: ActorSet) -> dict[str, Any]:
    """How many actors, on which hosts, and what befell them."""
    return {
        "role": name,
        "alive": len(actors),
        "wanted": actors.target,
        "starting": len(actors.starting),
        "replaced": actors.replaced,
        "nodes": dict(Counter(place.host for place in list(actors.places.values()))),
        "trouble": actors.trouble,
    }
