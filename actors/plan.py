"""`hatch train --dry-run`: what a config would do, on which resources, in how much memory. Starts nothing."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from hatch_ray.config import Config
from hatch_ray.config_sections import Trained
from hatch_ray.model.size import count_parameters, engine_gib, learner_gib
from hatch_ray.run_folder import STAGES

STAGE_NAMES = {
    "pasta": "PaStA: the image encoder learns which patches match",
    "qa_sft": "QA SFT: the answers",
    "cold_start": "Cold start: the form of actions and answer",
    "grpo": "GRPO: better actions and answers",
}


def stage_steps(config: Config, stage: str) -> int | None:
    """Optimizer steps of a stage; None where they follow from the data (PaStA's pairs) and no bound is set."""
    section: Trained = getattr(config, stage)
    if stage == "pasta":
        return section.max_steps or None
    samples = config.data.samples * getattr(section, "fraction", 1.0)
    batch = config.grpo.prompts_per_step if stage == "grpo" else section.batch_size
    steps = max(1, math.floor(section.epochs * samples / batch))
    return min(steps, section.max_steps) if section.max_steps else steps


def describe(config: Config, console: Console) -> None:
    """Print the plan, the resources and the memory estimate of a config."""
    parameters = count_parameters(config.model.base)
    console.print(
        f"model: {config.model.base}, {parameters / 1e9:.3g} B parameters, {config.model.dtype}"
        + (f", LoRA rank {config.model.lora_rank}" if config.model.lora_rank else "")
    )
    data = config.data
    root = data.spar.hub or data.root or "data.root (not given yet)"
    place = {"rooms": "rendered rooms", "rgbd": f"posed RGB-D at {root}", "spar": f"SPAR-7M at {root}"}[data.kind]
    console.print(f"data: {place}, {data.samples} training and {data.heldout_samples} held-out samples")
    console.print(f"run folder: {config.run_dir}")

    plan = Table(title="Plan", title_justify="left")
    for heading in ("stage", "steps", "batch", "rate"):
        plan.add_column(heading)
    for stage in STAGES:
        if stage not in config.stages:
            continue
        section: Trained = getattr(config, stage)
        batch = f"{section.batch_size} " + ("pairs" if stage == "pasta" else "samples")
        if stage == "grpo":
            batch = f"{config.grpo.prompts_per_step} prompts x {config.grpo.group_size}"
        plan.add_row(STAGE_NAMES[stage], str(stage_steps(config, stage) or "by pairs"), batch, f"{section.lr:g}")
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
