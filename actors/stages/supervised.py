"""The training loop of PaStA, QA SFT and the cold start: one worker's steps, from the stage's last checkpoint on.

Rank 0 logs and saves. Checkpoints (`actors/runtime/checkpoints.py`) lie in the run folder, which all nodes share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch

from actors.runtime.checkpoints import Checkpoints, CheckpointWriter
from actors.runtime.stopping import workers_stop
from hatch_ray.config import Config
from hatch_ray.config_sections import Trained
from hatch_ray.learning.trainer_state import (
    load_state,
    make_optimizer,
    take_state,
    write_shards,
    write_state,
)
from hatch_ray.learning.workers import Workers, whole
from hatch_ray.run_folder import RunFolder


@dataclass(frozen=True)
class Lesson:
    """What a stage trains, on one of its workers.

    weights   what learns, by name: a checkpoint's content. They are trained in place.
    loss      step (from 0) -> this worker's loss, whose mean over the workers is the step's loss; called once a step.
    """

    stage: str
    settings: Trained
    steps: int
    workers: Workers
    weights: Mapping[str, torch.Tensor]
    loss: Callable[[int], torch.Tensor]


def train(lesson: Lesson, config: Config, run: RunFolder) -> bool:
    """Take the stage's steps. False when the run was asked to stop before the last one; the state is saved then.

    Raises FloatingPointError naming the step at a loss or gradient that is not finite, on every worker.
    """
    settings, stage, workers = lesson.settings, lesson.stage, lesson.workers
    learning = [weight for weight in lesson.weights.values() if weight.requires_grad]
    optimizer, scheduler = make_optimizer(learning, settings, lesson.steps)
    checkpoints = Checkpoints(run.checkpoints(stage), config.checkpoints)
    start = 0
    if (latest := workers.agreed(checkpoints.latest)) is not None:
        load_state(latest, lesson.weights, optimizer, scheduler)
        start = checkpoints.step(latest)
    if workers.first:
        run.forget_after(stage, start)
    losses: list[float] = []
    with CheckpointWriter(checkpoints) as writer:
        for step in range(start, lesson.steps):
            began = time.perf_counter()
            loss = lesson.loss(step)
            optimizer.zero_grad()
            loss.backward()
            norm = whole(torch.nn.utils.get_total_norm([w.grad for w in learning if w.grad is not None]))
            torch.nn.utils.clip_grads_with_norm_(learning, settings.grad_clip, norm)
            total = workers.sum(loss.detach().clone())
            values = {"loss": total.item() / workers.world, "grad_norm": norm.item()}
            check_finite(stage, step + 1, values)
            losses.append(values["loss"])
            rate = scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()
            if workers.first:
                speed = settings.batch_size / (time.perf_counter() - began)
                run.log(stage, step + 1, values | {"lr": rate, "samples_per_s": speed})
            stop = step + 1 < lesson.steps and workers_stop(run, workers.device)
            if stop or (step + 1) % settings.save_every == 0 or step + 1 == lesson.steps:
                score = -sum(losses) / len(losses)
                if workers.sharded:
                    write = partial(write_shards, workers, lesson.weights, optimizer, scheduler)
                    writer.save_together(step + 1, write, workers, score)
                elif workers.first:
                    writer.save(step + 1, partial(take_snapshot, lesson.weights, optimizer, scheduler), score)
                losses.clear()
                ray.train.report({"step": step + 1, "loss": values["loss"]})
            if stop:
                return False
    return True


def take_snapshot(
    weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, scheduler: Any
) -> Callable[[Path], None]:
    """Copy the state in memory; what is returned writes it into a checkpoint's folder."""
    return partial(write_state, take_state(weights, optimizer, scheduler))


def check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    """Raise FloatingPointError naming the stage, the step and what to change when a value is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{stage}: {name} is {value} at step {step}; lower {stage}.lr, or raise {stage}.warmup_steps. "
                "The run goes on from its last checkpoint when started again"
            )
