"""What a run asks of the cluster against what the cluster has, said before anything starts."""

from __future__ import annotations

import ray

from hatch_ray.config import Config, ConfigError
from hatch_ray.model.size import count_parameters, engine_gib, learner_gib

PROCESS_GIB = 0.7
"""Python, torch and vLLM or transformers in one process, before any weights (measured on CPU)."""
JUDGE_GIB = 0.2
SLACK = 1e-6


def check_resources(config: Config) -> None:
    """Raise ConfigError naming what is short, if the actors of the config's stages can never all be placed.

    Needs a running Ray. GRPO needs learner, engines and judges at once; the other stages the learner alone; evaluation
    the engines alone.
    """
    grpo = "grpo" in config.stages
    roles = [("learner", config.learner.workers, config.learner.cpus, config.learner.gpus)]
    if grpo:
        roles.append(("rollout", config.rollout.actors, config.rollout.cpus, config.rollout.gpus))
        roles.append(("reward_actors", config.reward_actors.actors, config.reward_actors.cpus, 0.0))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, place in (("CPU", 2), ("GPU", 3)):
        have = sum(node.get(kind, 0.0) for node in nodes)
        largest = max(node.get(kind, 0.0) for node in nodes)
        need = sum(role[1] * float(role[place]) for role in roles)
        if need > have + SLACK:
            parts = " + ".join(f"{role[0]} {role[1]} x {role[place]:g}" for role in roles if role[place])
            raise ConfigError(
                f"the run needs {need:g} {kind}s ({parts}) and the cluster has {have:g}: "
                f"lower the actors, workers or {kind.lower()}s of these sections, or add machines"
            )
        for role in roles:
            if role[place] > largest + SLACK:
                raise ConfigError(
                    f"{role[0]}.{kind.lower()}s={role[place]:g}, but no machine has more than {largest:g}"
                )
    check_memory(config, nodes)


def check_memory(config: Config, nodes: list[dict[str, float]]) -> None:
    """Raise ConfigError when the CPU roles need more memory than Ray has. Activations are not counted."""
    parameters = count_parameters(config.model.base)
    need_gib = 0.0
    if not config.learner.gpus:
        need_gib += config.learner.workers * (PROCESS_GIB + learner_gib(config, parameters))
    if "grpo" in config.stages:
        need_gib += config.reward_actors.actors * JUDGE_GIB
        if not config.rollout.gpus:
            need_gib += config.rollout.actors * (PROCESS_GIB + engine_gib(config, parameters))
    have_gib = sum(node.get("memory", 0.0) for node in nodes) / 2**30
    if need_gib > have_gib:
        raise ConfigError(
            f"the run needs about {need_gib:.1f} GiB of memory and the cluster has {have_gib:.1f}: "
            "lower rollout.actors, rollout.kv_cache_mb or learner.workers, or add machines"
        )
