"""What a running GRPO stage shows of itself, and what of it can be scaled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.runtime.actor_pool import ActorPool
from actors.runtime.actor_set import ActorSet
from actors.runtime.placement import Need, reward_resources, rollout_resources
from actors.runtime.status import Role, Shown
from hatch_ray.config import Config


@dataclass(frozen=True)
class StageStatus:
    """Where the stage's loop is, samples that are set aside, the metrics of the last step that was learned, and
    what the sampler asks now, in words.
    """

    phase: str
    engines_version: int
    sampled_steps: int
    set_aside: int
    latest: Mapping[str, float]
    asks: Mapping[str, str]


def grpo_view(
    config: Config,
    pools: Mapping[str, ActorPool],
    waits: Sequence[float],
    learner_nodes: Sequence[str],
    loop: Callable[[], StageStatus],
) -> Shown:
    """The stage as `actors.runtime.status.Live` shows it, from a thread of its own: it reads, and changes nothing.

    pools: "rollout" and "reward"; waits: seconds to each of the newest scores; loop: asked at each heartbeat.
    """
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    workers = config.learner.workers
    where = dict(Counter(hosts.get(node, node) for node in learner_nodes))
    learner = {"role": "learner", "alive": workers, "wanted": workers, "nodes": where}

    def status() -> dict[str, Any]:
        now, newest = loop(), sorted(waits)
        return {
            "phase": now.phase,
            "engines_version": now.engines_version,
            "sampled_steps": now.sampled_steps,
            "set_aside": now.set_aside,
            "redrawn": now.latest.get("redrawn_groups"),
            "tokens_per_s": round(now.latest["tokens"] / now.latest["seconds"], 1) if now.latest else None,
            "asks": dict(now.asks),
            "staleness": now.latest.get("staleness"),
            "reward_total": now.latest.get("reward_total"),
            "roles": [*({"role": name} | actors_status(pool.actors) for name, pool in pools.items()), learner],
            "queue": {name: pool.waiting for name, pool in pools.items()},
            "reward_wait_seconds": {f"p{q}": round(newest[len(newest) * q // 100], 4) for q in (50, 95) if newest},
        }

    why_not = "colocated engines are as many as the learner's workers" if config.colocated else ""
    rollout = Role(pools["rollout"].actors, Need("rollout", 1, rollout_resources(config)), why_not)
    reward = Role(pools["reward"].actors, Need("reward_actors", 1, reward_resources(config)))
    return Shown(status, {"rollout": rollout, "reward": reward})


def actors_status(actors: ActorSet) -> dict[str, Any]:
    """How many actors, on which hosts, and what befell them."""
    return {
        "alive": len(actors),
        "wanted": actors.target,
        "starting": len(actors.starting),
        "replaced": actors.replaced,
        "nodes": dict(Counter(place.host for place in list(actors.places.values()))),
        "trouble": actors.trouble,
    }
