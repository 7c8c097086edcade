"""What a Ray Train worker of GRPO does from its first step to its last: take shards, learn, publish, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device

from actors.experience.ledger import mean
from actors.learner.learner import Learner
from actors.runtime.checkpoints import Checkpoints, CheckpointWriter
from actors.runtime.deadlines import collectives, enter_process, limits, wait_for
from actors.runtime.messages import Probe
from actors.weights.publish import Publisher
from hatch_ray.config import Config
from hatch_ray.learning.workers import Workers
from hatch_ray.run_folder import RunFolder, append_jsonl

REPORTS = "reports.jsonl"
"""In a checkpoint: the learner's numbers of the steps since the one before, which the driver may not have seen."""


@dataclass(frozen=True)
class GrpoJob:
    """What a worker needs. `model` is the stage's first model and the reference of the KL term; probes: fewest images
    first."""

    config: Config
    run: Path
    model: str
    steps: int
    experience: ray.actor.ActorHandle
    weights: ray.actor.ActorHandle
    probes: tuple[Probe, ...] = ()


def learner_loop(job: GrpoJob) -> None:
    """What every worker of the learner runs. Rank 0 reports, publishes and saves."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    enter_process(f"learner rank {rank}", job.config.model_copy(update={"run_dir": job.run}), [job.experience])
    node = ray.get_runtime_context().get_node_id()
    wait_for(job.experience.arrive.remote(rank, node), "grpo: meeting the driver", limits.call)
    torch.set_num_threads(max(1, math.floor(job.config.learner.cpus)))
    torch.manual_seed(job.config.seed)
    workers = Workers(job.config.learner, get_device(), rank, world, context.get_local_world_size())
    run = RunFolder(job.run)
    checkpoints = Checkpoints(run.checkpoints("grpo"), job.config.checkpoints)
    first = 0
    with collectives("grpo: the learner's start", rank):
        learner = Learner(job.config, job.model, job.steps, workers, run=job.run)
        latest = workers.agreed(checkpoints.latest)
        if latest is not None:
            first = checkpoints.step(latest)
            learner.load(latest)
        untouched = learner.frozen_checksum()
        # What a sharded model computes, all of its workers compute together.
        answering = rank == 0 or workers.sharded
        scores = [learner.score_probe(probe, first, with_blank=True) for probe in job.probes if answering]
    publisher = Publisher(job.weights, job.config.rollout.weights)
    if rank == 0:
        wait_for(job.experience.put_probes.remote(scores), "grpo: handing over the learner's probes", limits.call)
    reports: list[dict[str, Any]] = []
    rewards: list[float] = []
    before = time.monotonic()
    with CheckpointWriter(checkpoints) as writer:
        save = partial(save_state, learner, job.model, writer, reports, rewards)
        for step in range(first, job.steps):
            taken = job.experience.take.remote(step, rank)
            shard = wait_for(taken, f"grpo: shard of step {step}", limits.call, publisher.check)
            if shard is None:
                saving = job.experience.saving.remote()
                unsaved = step > first and step % job.config.grpo.save_every
                if wait_for(saving, "grpo: whether to save", limits.call) and unsaved:
                    save(step)
                return
            start = time.monotonic()
            with collectives(f"grpo: step {step}", rank):
                metrics = learner.update(shard)
            learner.optimizer.zero_grad(set_to_none=True)  # their memory is for what is sent and asked between steps
            metrics["seconds_learn"] = time.monotonic() - start
            metrics |= {"time_began": time.time() - metrics["seconds_learn"], "time_ended": time.time()}
            metrics["seconds"] = time.monotonic() - before
            before = time.monotonic()
            reports.append({"step": step} | metrics)
            rewards.append(shard.reward)
            done = step + 1
            if done % job.config.grpo.save_every == 0 and done < job.steps:
                save(done)
                rewards.clear()
                reports.clear()
            if done == job.steps:
                writer.wait()
                if learner.frozen_checksum() != untouched:
                    raise RuntimeError(f"grpo changed weights outside grpo.trainable={job.config.grpo.trainable}")
                if answering:
                    learner.save(run.stage_model("grpo"), job.model)
            if rank == 0:
                wait_for(job.experience.report.remote(step, metrics), "grpo: report of a step", limits.call)
            if answering:
                with collectives(f"grpo: version {done}", rank):
                    probe = learner.score_probe(job.probes[-1], done) if job.probes else None
                    weights = learner.each_learned_weight()
                if rank == 0:
                    publisher.publish(weights, done, probe)
                del weights
        publisher.wait()


def save_state(
    learner: Learner,
    first: str | Path,
    writer: CheckpointWriter,
    reports: Sequence[dict[str, Any]],
    rewards: Sequence[float],
    step: int,
) -> None:
    """Write the state of `step` beside the training: rank 0 from a copy in memory, a sharded model with all workers
    at once, which wait for it. Holds the steps reported since the state before."""
    workers, score = learner.workers, mean(rewards)
    told = list(reports)

    def write_all(write: Callable[[Path], None], folder: Path) -> None:
        write(folder)
        if workers.first:
            append_jsonl(folder / REPORTS, told)

    if workers.sharded:
        with collectives(f"grpo: saving step {step}", workers.rank):
            writer.save_together(step, partial(write_all, partial(learner.write_together, first=first)), workers, score)
    elif workers.first:
        writer.save(step, lambda: partial(write_all, learner.snapshot(first)), score)
