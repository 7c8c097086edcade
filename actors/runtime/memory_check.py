"""Whether a run fits into the memory that there is, by count (`hatch_ray/model/memory.py`). Plain arithmetic, no Ray.

On GPUs a worker that does not fit is refused. On CPUs what Ray calls memory is an estimate of its own, and a pass is
seldom as large as the settings allow: only what is held always is refused, and the rest is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from hatch_ray.config import Config, ConfigError
from hatch_ray.model.memory import (
    GB,
    Footprint,
    Share,
    divided_by,
    engine_memory,
    gb_text,
    host_memory,
    largest,
    learner_memory,
    stage_kind,
    workers_used,
)

PROCESS_GB = 0.75
"""Python, torch and vLLM or transformers in one process, before any weights (measured on CPU)."""
REWARD_ACTOR_GB = 0.2
GPU_GB = {
    "T4": 15.0, "L4": 24.0, "A10G": 24.0, "A100-40G": 40.0, "L40S": 48.0, "A100-80G": 80.0, "H100": 80.0,
    "RTX-PRO-6000": 96.0, "H200": 141.0, "B200": 180.0,
}  # fmt: skip
"""Memory by the accelerator type that Ray reports, GB: what its name says, which is a little less than it has."""
SIZES = {"A100": "40 or 80", "V100": "16 or 32"}
"""Types of which there are several sizes: none is assumed."""
TYPE = "accelerator_type:"


def learner_room(config: Config, stage: str, gpu_gb: float) -> float:
    """What a worker may take of its GPU, GB: all, its share, or what a colocated engine leaves."""
    if config.colocated:
        taken = config.rollout.gpu_memory_utilization if stage_kind(config, stage) == "grpo" else 0
        return gpu_gb * (1 - taken)
    return gpu_gb * config.learner.gpus


def engine_room(config: Config, gpu_gb: float) -> float:
    """What an engine may take of its GPU, GB."""
    return gpu_gb * config.rollout.gpu_memory_utilization


def gpu_size(config: Config, nodes: Sequence[Mapping[str, float]]) -> tuple[float | None, str]:
    """Memory of the smallest GPU, GB, and in words where that is known from; None and why where it is not known."""
    if config.learner.gpu_gb is not None:
        return config.learner.gpu_gb, "learner.gpu_gb"
    kinds = _types(node for node in nodes if node.get("GPU"))
    if not kinds:
        return None, "Ray reports no accelerator type"
    for kind in kinds:
        if kind not in GPU_GB:
            return None, f"{kind} has {SIZES[kind]} GB" if kind in SIZES else f"the memory of {kind} is not known here"
    smallest = min(kinds, key=lambda kind: GPU_GB[kind])
    return GPU_GB[smallest], smallest


def _types(nodes: Iterable[Mapping[str, float]]) -> list[str]:
    """Accelerator types; of one that is named with and without its size (A100, A100-80G) only with it."""
    found = set()
    for node in nodes:
        names = [name.removeprefix(TYPE) for name in node if name.startswith(TYPE)]
        found |= {name for name in names if not any(other.startswith(f"{name}-") for other in names)}
    return sorted(found)


def check_memory(config: Config, nodes: Sequence[Mapping[str, float]], say: Callable[[str], None]) -> None:
    """Raise ConfigError with the largest shares and what lowers them, where a role does not fit.

    Says where the memory of GPUs is not known, and where a run on CPUs may need more than there is.
    """
    if config.learner.gpus or ("grpo" in config.stages and config.rollout.gpus):
        size, source = gpu_size(config, nodes)
        if size is None:
            say(f"whether the run fits into its GPUs is not checked: {source}; set learner.gpu_gb")
        else:
            _check_gpus(config, size, source)
    _check_cpus(config, sum(node.get("memory", 0.0) for node in nodes) / GB, say)


def _check_gpus(config: Config, size: float, source: str) -> None:
    where = f"its GPU ({source}) leaves it"
    if config.learner.gpus:
        for stage in config.stages:
            need, room = learner_memory(config, stage), learner_room(config, stage, size)
            _refuse(f"{stage}: a learner worker", need, room, where)
    if "grpo" in config.stages and config.rollout.gpus:
        _refuse("grpo: an engine", engine_memory(config), engine_room(config, size), where)


def _refuse(who: str, need: Footprint, room: float, where: str) -> None:
    if need.gb > room:
        raise ConfigError(
            f"{who} needs about {gb_text(need.gb)} GB by count and {where} {gb_text(room)}. Most is "
            f"{largest(need.shares)}. `hatch train CONFIG --dry-run` shows all (docs/memory.md)"
        )


def _check_cpus(config: Config, have: float, say: Callable[[str], None]) -> None:
    sure, most = max((machine_memory(config, stage) for stage in config.stages), key=lambda pair: pair[1])
    need = sum(share.gb for share in sure)
    if need > have:
        raise ConfigError(
            f"the run needs about {gb_text(need)} GB of memory, activations left out, and the cluster has "
            f"{gb_text(have)}: {largest(sure)}; or add machines"
        )
    if most > have:
        say(
            f"the run needs up to {gb_text(most)} GB of memory where passes are as large as the settings allow, and "
            f"the cluster has {gb_text(have)}; if a process is killed for it, lower grpo.token_budget or batches"
        )


def machine_memory(config: Config, stage: str) -> tuple[list[Share], float]:
    """What a stage takes of the machines' memory (not of GPUs): shares without activations, and the most in all, GB."""
    workers, kind = workers_used(config, stage), stage_kind(config, stage)
    actors = config.rollout.actors if kind == "grpo" else 0
    shares = [*host_memory(config, stage)]
    shares.append(Share("processes", (workers + actors) * PROCESS_GB * GB, "lower rollout.actors or learner.workers"))
    passing = 0.0
    if not config.learner.gpus:
        learner = learner_memory(config, stage)
        shares += [replace(share, bytes=workers * share.bytes) for share in learner.always]
        passing = workers * (learner.gb - sum(share.gb for share in learner.always))
    if actors and not config.rollout.gpus:
        shares += [
            replace(share, name=f"engines' {share.name}", bytes=actors * share.bytes)
            for share in engine_memory(config).shares
        ]
    if kind == "grpo":
        shares.append(Share("reward actors", config.reward_actors.actors * REWARD_ACTOR_GB * GB))
    return shares, sum(share.gb for share in shares) + passing


def unused_workers(config: Config) -> list[str]:
    """In words: stages that leave learner workers without work, and what to set."""
    told = []
    for stage in config.stages:
        used, workers = workers_used(config, stage), config.learner.workers
        if used < workers:
            told.append(
                f"{stage} uses {used} of {workers} learner workers, as {stage}.batch_size="
                f"{config.settings(stage).batch_size} cannot be shared by more: set it to a multiple of {workers}"
            )
    return told


def check_workers(config: Config) -> None:
    """Raise ConfigError where some of the learner's GPUs are used by no stage, or nodes would have unequal shares."""
    for stage in config.stages:
        used, node = workers_used(config, stage), divided_by(config, stage)
        if used % node:
            raise ConfigError(
                f"{stage} uses {used} learner workers, which nodes of learner.workers_per_node={node} cannot have "
                f"evenly: set {stage}.batch_size to a multiple of {config.learner.workers}, or learner.sharding=full"
            )
    used = max(workers_used(config, stage) for stage in config.stages)
    if config.learner.gpus and used < config.learner.workers:
        raise ConfigError(f"no stage uses all GPUs: {'; '.join(unused_workers(config))}, or set learner.workers={used}")
