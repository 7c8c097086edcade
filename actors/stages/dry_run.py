"""`hatch train --dry-run`: what a config would do, on which resources, in how much memory. Starts nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from actors.runtime.memory_check import PROCESS_GB, engine_room, learner_room, machine_memory, unused_workers
from hatch_ray.config import Config
from hatch_ray.config_sections import Trained
from hatch_ray.data.store import stage_steps
from hatch_ray.model.memory import engine_memory, gb_text, host_memory, learner_memory, workers_used
from hatch_ray.model.size import check_prefixes, count_parameters
from hatch_ray.sinks import check_sinks
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
    check_sinks(config)
    parameters = count_parameters(config.model.base)
    check_prefixes(config.model.base, config.grpo.shared_prefix)
    console.print(
        f"model: {config.model.base}, {parameters / 1e9:.3g} B parameters, {config.learner.master} weights, "
        f"{config.learner.compute} compute, {config.rollout.dtype} engines"
        + (f", LoRA rank {config.model.lora_rank}" if config.model.lora_rank else "")
    )
    system = system_of(config)
    for name in system.sections():
        data = config.settings(name)
        root = data.spar.hub or data.root or f"{name}.root (not given yet)"
        known = {"rooms": "rendered rooms", "rgbd": f"posed RGB-D at {root}", "spar": f"SPAR-7M at {root}",
                 "scenes": f"posed scenes at {root}"}  # fmt: skip
        place = known.get(data.kind, f"{data.kind} at {data.root}" if data.root else data.kind)
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
            if config.grpo.redraw:
                batch += f", sampled at most {1 + config.grpo.redraw} times (grpo.redraw)"
        plan.add_row(stage.title, str(planned_steps(config, stage.name) or "by pairs"), batch, f"{section.lr:g}")
    console.print(plan)

    gpus = 0.0
    resources = Table(title="Resources while GRPO runs", title_justify="left")
    for heading in ("role", "processes", "CPUs each", "GPUs each"):
        resources.add_column(heading)
    roles = [
        ("learner", config.learner.workers, config.learner.cpus, config.learner.gpus),
        ("rollout", config.rollout.actors, config.rollout.cpus, config.rollout.gpus),
        ("reward", config.reward_actors.actors, config.reward_actors.cpus, 0.0),
    ]
    for role, count, cpus, role_gpus in roles:
        gpus += count * role_gpus
        resources.add_row(role, str(count), f"{cpus:g}", f"{role_gpus:g}")
    console.print(resources)
    cpus = sum(count * cpu for _, count, cpu, _ in roles)
    console.print(f"in all: {cpus:g} CPUs, {gpus:g} GPUs")
    describe_memory(config, console)


def describe_memory(config: Config, console: Console) -> None:
    """Print what a learner worker takes in each stage, share by share, and an engine and the machine beside it."""
    titles = {stage.name: stage.short for stage in system_of(config).stages}
    needs = {stage: learner_memory(config, stage) for stage in config.stages}
    size = config.learner.gpu_gb
    table = Table(title="Memory of a learner worker at its fullest moment, by count, GB", title_justify="left")
    table.add_column("share")
    for stage in needs:
        table.add_column(titles[stage], justify="right")
    held = {stage: {share.name: share.gb for share in need.shares} for stage, need in needs.items()}
    for name in dict.fromkeys(name for shares in held.values() for name in shares):
        table.add_row(name, *(gb_text(shares[name]) if name in shares else "" for shares in held.values()))
    table.add_section()
    where = "on a GPU" if config.learner.gpus else f"in its process, beside {PROCESS_GB:g} of libraries"
    table.add_row(f"in all, {where}", *(gb_text(need.gb) for need in needs.values()))
    if size and config.learner.gpus:
        rooms = {stage: learner_room(config, stage, size) for stage in needs}
        table.add_row("it may take", *(gb_text(room) for room in rooms.values()))
        table.add_row("fits", *("yes" if needs[stage].gb <= room else "NO" for stage, room in rooms.items()))
    table.add_row("the moment", *(need.fullest for need in needs.values()))
    table.add_row("workers at work", *(f"{workers_used(config, stage)} of {config.learner.workers}" for stage in needs))
    beside = (sum(share.gb for share in host_memory(config, stage)) for stage in needs)
    table.add_row("beside it, in the machines' memory", *map(gb_text, beside))
    console.print(table)
    engine = engine_memory(config)
    parts = ", ".join(f"{share.name} {gb_text(share.gb)}" for share in engine.shares)
    room = f", of {gb_text(engine_room(config, size))} that it may take" if size and config.rollout.gpus else ""
    console.print(f"a rollout engine: {parts}: {gb_text(engine.gb)} GB{room}")
    most = max(machine_memory(config, stage)[1] for stage in needs)
    console.print(f"memory of the machines in all: up to {gb_text(most)} GB, Ray's object store left out")
    if config.learner.gpus and not size:
        console.print("memory of the GPUs: not known here; learner.gpu_gb=80 compares with 80 GB")
    for told in unused_workers(config):
        console.print(told)
