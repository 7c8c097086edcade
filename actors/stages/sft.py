"""QA SFT and cold start in Ray Train: one resumable stage, from model folder to model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device

from actors.runtime.checkpoints import Checkpoints
from actors.runtime.progress import Report
from actors.stages.fit import fit_supervised
from actors.stages.run_processes import RunProcesses
from actors.stages.supervised import Lesson, train
from hatch_ray.config import Config
from hatch_ray.config_sections import SftConfig
from hatch_ray.data.store import SampleOrder, stage_steps
from hatch_ray.learning.sft import SampleEncoder, pack_samples, reply_loss, share_by_task
from hatch_ray.learning.workers import Workers, frozen_checksum, load_learning, save_trained
from hatch_ray.model.base import load_processor
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of


@dataclass(frozen=True)
class SftJob:
    """What a worker of a supervised stage needs."""

    config: Config
    run: Path
    stage: str
    model: str
    samples: list[Sample]
    steps: int

    @property
    def settings(self) -> SftConfig:
        settings: SftConfig = self.config.settings(self.stage)
        return settings


def run_sft(
    stage: str,
    config: Config,
    run: RunFolder,
    model: str | Path,
    samples: Sequence[Sample],
    report: Report,
    processes: RunProcesses | None = None,
) -> dict[str, Any]:
    """Fine-tune on the system's gold replies, from `model` to RUN/<stage>/model.

    Returns "steps", "line" and the loss at the start and end. Raises ValueError when a sample exceeds the context.
    """
    settings: SftConfig = config.settings(stage)
    chosen = share_by_task(samples, settings.fraction, config.seed)
    processor = load_processor(model, config.model.max_pixels)
    SampleEncoder(processor, system_of(config), stage).check(chosen)
    steps = stage_steps(settings, len(chosen), settings.batch_size)
    Checkpoints(run.checkpoints(stage)).latest()  # a bad one is set aside, and told, before the workers start
    job = SftJob(config, run.path, stage, str(model), chosen, steps)
    fit_supervised(processes, sft_loop, job, config, run, stage, steps, report)
    losses = [row["loss"] for row in read_jsonl(run.metrics_path) if row["stage"] == stage]
    tail = losses[-10:]
    last = sum(tail) / len(tail)
    line = f"loss {losses[0]:.3f} -> {last:.3f} in {steps} steps on {len(chosen)} samples"
    return {"steps": steps, "line": line, "samples": len(chosen), "loss_first": losses[0], "loss_last": last}


def sft_loop(job: SftJob) -> None:
    """One worker's share of a supervised stage."""
    config, run = job.config, RunFolder(job.run)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)
    learner, device = config.learner, get_device()
    workers = Workers(learner, device, rank, world, context.get_local_world_size())
    model = load_learning(workers, job.model, job.settings.trainable, config.model.lora_rank)
    processor = load_processor(job.model, config.model.max_pixels)
    encoder = SampleEncoder(processor, system_of(config), job.stage)
    order = SampleOrder(len(job.samples), job.settings.batch_size, config.seed)
    scorer = ReplyScorer(model, compute=learner.compute)
    trained = workers.wrap(scorer)
    untouched = frozen_checksum(model, job.settings.trainable)

    def loss(step: int) -> torch.Tensor:
        batch = [job.samples[index] for index in order.indices(step)]
        tokens = sum(len(encoder.reply(sample)) for sample in batch)
        packed = pack_samples(model, encoder, batch[rank::world]).to(device)
        logprobs, _ = trained(packed)
        return reply_loss(logprobs, tokens, world)

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if train(Lesson(job.stage, job.settings, job.steps, workers, weights, loss), config, run):
        if frozen_checksum(model, job.settings.trainable) != untouched:
            raise RuntimeError(f"{job.stage} changed weights outside {job.stage}.trainable={job.settings.trainable}")
        save_trained(workers, model, job.model, learner.master, processor, run.stage_model(job.stage))
