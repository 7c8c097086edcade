"""`hatch train --dry-run`: what a config would do, on which resources, in how much memory. Starts nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hatch_ray.config import Config
from hatch_ray.config_sections import Trained
from hatch_ray.data.store import stage_steps
from hatch_ray.model.size import count_parameters, engine_gib, learner_gib
from hatch_ray.systems import system_of


def planned_steps(config: Config, name: str) -> int | None:
    """Optimizer steps of a stage; None where they follow from the data (PaStA's pairs) and none are set."""
    stage, section = system_of(config).stage(name), config.settings(name)
    if stage.kind == "pasta":
        return section.max_steps or None
    samples = max(1, round(config.settings(stage.data).samples * section.fraction))
    return stage_steps(section, samples, config.grpo.prompts_per_step if stage.kind == "grpo" else section.batch_size)


def describe(config: Config, console: Console) -> None:
    """Print the plan, the resources and the memory estimate of a config."""
    parameters = count_parameters(config.model.base)
    console.print(
        f"model: {config.model.base}, {parameters / 1e9:.3g} B parameters, {config.learner.master} weights, "
        f"{config.learner.compute} compute, {config.rollout.dtype} engines"
        + (f", LoRA rank {config.model.lora_rank}" if config.model.lora_rank else "")
    )
    system = system_of(config)
    for name in system.sections():
        data = config.settings(name)
        root = data.spar.hub or data.root or f"{name}.root (not given yet)"
        known = {"rooms": "rendered rooms", "rgbd": f"posed RGB-D at {root}", "spar": f"SPAR-7M at {root}"}
        place = known.get(data.kind, data.kind)
        console.print(f"{name}: {place}, {data.samples} training and {data.heldout_samples} held-out samples")
    console.print(f"run folder: {config.run_dir}")

    plan = Table(title="Plan", title_justify="left")
    for heading in ("stage", "steps", "batch", "rate"):
        plan.add_column(heading)
    for stage in system.stages:
        if stage.name not in config.stages:
            continue
        section: Trained = config.settings(stage.name)
        batch = f"{section.batch_size} " + ("pairs" if stage.kind == "pasta" else "samples")
        if stage.kind == "grpo":
            batch = f"{config.grpo.prompts_per_step} prompts x {config.grpo.group_size}"
        plan.add_row(stage.title, str(planned_steps(config, stage.name) or "by pairs"), batch, f"{section.lr:g}")
    console.print(plan)

    gpus = 0.0
    resources = Table(title="Resources while GRPO runs", title_justify="left")
    for heading in ("role", "processes", "CPUs each", "GPUs each", "memory each, without activations"):
        resources.add_column(heading)
    roles = [
        ("learner", config.learner.workers, config.learner.cpus, config.learner.gpus, learner_gib(config, parameters)),
        ("rollout", config.rollout.actors, config.rollout.cpus, config.rollout.gpus, engine_gib(config, parameters)),
        ("reward", config.reward_actors.actors, config.reward_actors.cpus, 0.0, 0.2),
    ]
    for role, count, cpus, role_gpus, memory in roles:
        gpus += count * role_gpus
        resources.add_row(role, str(count), f"{cpus:g}", f"{role_gpus:g}", f"{memory:.2f} GiB")
    console.print(resources)
    cpus = sum(count * cpu for _, count, cpu, _, _ in roles)
    console.print(f"in all: {cpus:g} CPUs, {gpus:g} GPUs")
