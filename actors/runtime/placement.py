"""What each role needs, node by node, against what nodes there are. Plain arithmetic, no Ray.

A node is a dictionary of Ray's resources: {"CPU": 16.0, "GPU": 1.0, "rollout": 1.0}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from hatch_ray.config import Config
from hatch_ray.config_sections import Placed

SLACK = 1e-6
Node = Mapping[str, float]
OWN = ("CPU", "GPU")
"""Resources with config fields of their own; Ray's others (memory, node:..) are not asked for by number."""


@dataclass(frozen=True)
class Need:
    """`count` processes of one role, each with the resources of `each`; together: all on one node."""

    role: str
    count: int
    each: Mapping[str, float]
    together: bool = False


def resources_of(cpus: float, gpus: float, role: Placed) -> dict[str, float]:
    """What Ray is asked for one process; what is 0 is left out."""
    return {name: float(amount) for name, amount in {"CPU": cpus, "GPU": gpus, **role.resources}.items() if amount}


def learner_resources(config: Config) -> dict[str, float]:
    """What a worker of the learner takes. A colocated engine beside it takes its turn on the same CPUs."""
    learner = config.learner
    cpus = max(learner.cpus, config.rollout.cpus) if config.colocated else learner.cpus
    return resources_of(cpus, learner.gpus, learner)


def rollout_resources(config: Config, colocated: bool | None = None) -> dict[str, float]:
    """What an engine takes: colocated (config.colocated where None) its share of the GPU alone."""
    colocated = config.colocated if colocated is None else colocated
    return resources_of(0 if colocated else config.rollout.cpus, config.rollout.gpus, config.rollout)


def reward_resources(config: Config) -> dict[str, float]:
    """What a reward actor takes."""
    return resources_of(config.reward_actors.cpus, 0, config.reward_actors)


def actor_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Keyword arguments of Ray's `options` for an actor that takes these."""
    own = {name: amount for name, amount in resources.items() if name not in OWN}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": own}


def stage_needs(config: Config, stage: str) -> list[Need]:
    """All that a stage has at once, the least movable role first."""
    colocated = Counter(rollout_resources(config)) if config.colocated and stage == "grpo" else Counter()
    learner = _learner_need(config, dict(Counter(learner_resources(config)) + colocated))
    if stage != "grpo":
        return [learner]
    rewards = Need("reward_actors", config.reward_actors.actors, reward_resources(config))
    if config.colocated:
        return [learner, rewards]
    return [learner, Need("rollout", config.rollout.actors, rollout_resources(config)), rewards]


def _learner_need(config: Config, each: dict[str, float]) -> Need:
    """The workers, each with these resources; where a node's workers divide the model, they are asked for at once."""
    learner = config.learner
    size = learner.workers_per_node if learner.sharding == "hybrid" else 1
    whole = {name: amount * size for name, amount in each.items()}
    return Need("learner", learner.workers // size, whole, learner.together == "STRICT_PACK")


def engine_needs(config: Config) -> list[Need]:
    """What an evaluation has: engines, each on its own."""
    return [Need("rollout", config.rollout.actors, rollout_resources(config, colocated=False))]


def placed(needs: Sequence[Need], nodes: Sequence[Node]) -> list[int]:
    """How many of each need find a place, in the order that finds one for most of them."""
    best = [0] * len(needs)
    for order in permutations(range(len(needs))):
        free = [dict(node) for node in nodes]
        found = [0] * len(needs)
        for index in order:
            found[index] = _fill(needs[index], free)
        if sum(found) > sum(best):
            best = found
        if all(count == need.count for count, need in zip(best, needs, strict=True)):
            break
    return best


def _fill(need: Need, free: list[dict[str, float]]) -> int:
    """Take places for as many as fit, on the nodes that have least to spare for others; how many."""
    if need.together:
        whole = {name: amount * need.count for name, amount in need.each.items()}
        return need.count if _fill(replace(need, count=1, each=whole, together=False), free) else 0
    for number in range(need.count):
        fitting = [node for node in free if _fits(need.each, node)]
        if not fitting:
            return number
        node = min(fitting, key=lambda node: (len(_shown(node).keys() - need.each.keys()), node.get("CPU", 0.0)))
        for name, amount in need.each.items():
            node[name] -= amount
    return need.count


def _fits(each: Mapping[str, float], node: Node) -> bool:
    return all(node.get(name, 0.0) + SLACK >= amount for name, amount in each.items())


def _shown(node: Node) -> dict[str, float]:
    """What there is of a node's resources, without those that nobody asks for by number; CPU and GPU first."""
    asked_for = {name: node[name] for name in (*OWN, *sorted(node)) if name in node and node[name] > SLACK}
    hidden = ("node:", "accelerator_type:")
    return {n: amount for n, amount in asked_for.items() if not (n.startswith(hidden) or n.endswith("memory"))}


def shortage(needs: Sequence[Need], nodes: Sequence[Node]) -> str | None:
    """What is missing for whom, what the cluster has, and what to change; None when all find a place."""
    found = placed(needs, nodes)
    short = [(need, count) for need, count in zip(needs, found, strict=True) if count < need.count]
    if not short:
        return None
    parts = "; ".join(f"{need.role}: {_why(need, count, needs, nodes)}" for need, count in short)
    return f"{parts}. The cluster has {describe_all(nodes)}"


def _why(need: Need, found: int, needs: Sequence[Need], nodes: Sequence[Node]) -> str:
    """The most telling reason: a kind of node is absent, else each node is too small, else all of them together."""
    size = f"{need.role}.{'workers' if need.role == 'learner' else 'actors'}"
    keys = {name: {"CPU": f"{need.role}.cpus", "GPU": f"{need.role}.gpus"}.get(name, f"{need.role}.resources")
            for name in need.each}  # fmt: skip
    have = {name: [node.get(name, 0.0) for node in nodes] for name in need.each}
    text = f"{need.count} x {describe(need.each)} are needed, {found} find a place"
    for name in need.each:
        if not any(have[name]):
            return f"{text}, because no node has {name}: add nodes that do, or change {keys[name]}"
    for name, amount in need.each.items():
        largest = max(have[name])
        if amount > largest + SLACK:
            return f"{text}, because no node has more than {largest:g} {name}: lower {keys[name]}, or add larger nodes"
        if need.together and amount * need.count > largest + SLACK:
            return (
                f"{text}, because no node has {amount * need.count:g} {name} for all of them: lower {size}, or set "
                f"{need.role}.together=PACK"
            )
    for name in need.each:
        asked = {one.role: one.count * one.each.get(name, 0.0) for one in needs}
        if sum(asked.values()) > sum(have[name]) + SLACK:
            whole = " + ".join(f"{role} {amount:g}" for role, amount in asked.items() if amount)
            return (
                f"{text}: the run needs {sum(asked.values()):g} {name} ({whole}) and the cluster has "
                f"{sum(have[name]):g}; lower {size} or {keys[name]}, or add nodes"
            )
    return (
        f"{text}: there is enough in sum, but what is left on single nodes is too small; lower {size} or what each "
        "takes, or add nodes"
    )


def describe(resources: Node) -> str:
    """{"CPU": 4.0, "rollout": 1.0} -> "{CPU 4, rollout 1}"."""
    return "{" + ", ".join(f"{name} {amount:g}" for name, amount in _shown(resources).items()) + "}"


def describe_all(nodes: Sequence[Node]) -> str:
    """ "2 x {CPU 16, GPU 1}, 1 x {CPU 8}"."""
    counted = Counter(describe(node) for node in nodes)
    return ", ".join(f"{count} x {text}" for text, count in counted.items()) or "no nodes"
