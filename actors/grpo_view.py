"""What a running GRPO stage shows of itself, and what of it can be scaled. Reads the stage, changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import ray

from actors.placement import Need, reward_resources, rollout_resources
from actors.pools import Pool

if TYPE_CHECKING:
    from actors.grpo_stage import GrpoRun


class GrpoView:
    """The stage as `actors.live.Live` sees it, from a thread of its own."""

    def __init__(self, stage: GrpoRun) -> None:
        self.stage = stage
        hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
        self.learner_hosts = [hosts.get(node, node) for node in stage.learner_nodes]

    def scalable(self) -> dict[str, tuple[Pool, Need]]:
        """Role -> its pool, and what one actor of it takes."""
        config, pools = self.stage.config, self.stage.pools
        return {
            "rollout": (pools["rollout"], Need("rollout", 1, rollout_resources(config))),
            "reward": (pools["reward"], Need("reward_actors", 1, reward_resources(config))),
        }

    def refusal(self, role: str) -> str | None:
        """Why a role cannot be scaled at all."""
        if role == "rollout" and self.stage.config.colocated:
            return "colocated engines are as many as the learner's workers"
        return None

    def status(self) -> dict[str, Any]:
        """The stage's part of status.json."""
        stage = self.stage
        workers = stage.config.learner.workers
        learner = {"role": "learner", "alive": workers, "wanted": workers, "nodes": dict(Counter(self.learner_hosts))}
        latest, waits = stage.latest, sorted(stage.judges.waits)
        return {
            "phase": stage.spans.phase,
            "engines_version": stage.served,
            "sampled_steps": stage.schedule.next_step,
            "roles": [*(pool_status(role, pool) for role, pool in stage.pools.items()), learner],
            "queue": {role: pool.waiting for role, pool in stage.pools.items()},
            "reward_wait_seconds": {f"p{q}": round(waits[len(waits) * q // 100], 4) for q in (50, 95) if waits},
            "tokens_per_s": round(latest["tokens"] / latest["seconds"], 1) if latest.get("seconds") else None,
            "staleness": latest.get("staleness"),
            "reward_total": latest.get("reward_total"),
            "set_aside": len(stage.ledger.aside),
        }


def pool_status(role: str, pool: Pool) -> dict[str, Any]:
    """How many actors, on which hosts, and what befell them."""
    return {
        "role": role,
        "alive": len(pool.actors),
        "wanted": pool.target,
        "starting": len(pool.starting),
        "replaced": pool.replaced,
        "nodes": dict(Counter(place.host for place in list(pool.places.values()))),
        "trouble": pool.trouble,
    }
