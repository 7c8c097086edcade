"""QA SFT and cold start in Ray Train: TRL's SFTTrainer, one resumable `fit` a stage, from model folder to model folder.

Rank 0 logs and saves. Checkpoints (`actors/checkpoints.py`) lie in the run folder, which all nodes share.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.huggingface.transformers import prepare_trainer
from transformers import TrainerCallback

from actors.checkpoints import Checkpoints, CheckpointWriter
from actors.fit import check_finite, fit_supervised, forget_after, stage_workers
from actors.progress import Report
from actors.stopping import workers_stop
from hatch_ray.config import Config
from hatch_ray.config_sections import SftConfig
from hatch_ray.learning.sft import (
    SampleEncoder,
    choose_samples,
    make_trainer,
    total_steps,
    trl_config,
)
from hatch_ray.model.base import load_model, load_processor, save_model
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.protocol.prompt import stage_mode
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample


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
        return self.config.qa_sft if self.stage == "qa_sft" else self.config.cold_start


def run_sft(
    stage: str, config: Config, run: RunFolder, model: str | Path, samples: Sequence[Sample], report: Report
) -> dict[str, Any]:
    """Fine-tune on gold replies, from `model` to RUN/<stage>/model. Stage "qa_sft" (answers) or "cold_start" (actions).

    Returns "steps", "line" and the loss at the start and end. Raises ValueError when a sample exceeds the context.
    """
    settings = config.qa_sft if stage == "qa_sft" else config.cold_start
    chosen = choose_samples(samples, settings.fraction, config.seed)
    processor = load_processor(model, config.model.max_pixels)
    SampleEncoder(processor, stage_mode(stage, config.model.reasoning), config.model).check(chosen)
    steps = total_steps(len(chosen), settings)
    Checkpoints(run.checkpoints(stage)).latest()  # a bad one is set aside, and told, before the workers start
    job = SftJob(config, run.path, stage, str(model), chosen, steps)
    fit_supervised(sft_loop, job, config, run, stage, stage_workers(config, settings.batch_size), steps, report)
    losses = [row["loss"] for row in read_jsonl(run.metrics_path) if row["stage"] == stage]
    tail = losses[-10:]
    last = sum(tail) / len(tail)
    line = f"loss {losses[0]:.3f} -> {last:.3f} in {steps} steps on {len(chosen)} samples"
    return {"steps": steps, "line": line, "samples": len(chosen), "loss_first": losses[0], "loss_last": last}


def sft_loop(settings: dict[str, Any]) -> None:
    """One worker's share of a supervised stage."""
    job: SftJob = ray.get(settings["job"])
    config, run = job.config, RunFolder(job.run)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    checkpoints = Checkpoints(run.checkpoints(job.stage), config.checkpoints)
    latest = checkpoints.latest()
    start = checkpoints.step(latest) if latest else 0
    scratch = run.path / job.stage / "trainer"
    if rank == 0:
        forget_after(run, job.stage, start)
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed process had not finished
    # transformers' Trainer cannot restore a full Qwen2.5-VL: on disk its weights have other names than in memory, and
    # it passes over what it does not find. Adapters it restores itself.
    model = load_model(latest if latest and not config.model.lora_rank else job.model)
    gpu = config.learner.gpus > 0
    if not gpu:
        speed_up_vision(model)
    processor = load_processor(job.model, config.model.max_pixels)
    encoder = SampleEncoder(processor, stage_mode(job.stage, config.model.reasoning), config.model)
    arguments = trl_config(job.settings, config.model, scratch, world, gpu, config.seed)
    with CheckpointWriter(checkpoints) as writer:
        watch = StageCallback(run, job.stage, job.settings.batch_size, writer)
        trainer = make_trainer(model, encoder, job.samples, arguments, config.model.lora_rank, [watch])
        trainer = prepare_trainer(trainer)
        if latest and start >= job.steps:
            # The stage was stopped after its last step; the Trainer would take one more. It loads what `train` would.
            if config.model.lora_rank:
                trainer._load_from_checkpoint(str(latest))
        else:
            trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    if rank == 0 and not watch.stopped:
        final = trainer.accelerator.unwrap_model(trainer.model)
        if config.model.lora_rank:
            final = final.merge_and_unload()
        save_model(final.to("cpu", getattr(torch, config.model.dtype)), processor, run.stage_model(job.stage))
        shutil.rmtree(scratch, ignore_errors=True)


class StageCallback(TrainerCallback):
    """Logs each step to the run folder, stops at a loss that is not finite, hands checkpoints to their writer.

    stopped: the run was asked to stop before the last step, and the state is saved.
    """

    def __init__(self, run: RunFolder, stage: str, batch_size: int, writer: CheckpointWriter) -> None:
        self.run = run
        self.stage = stage
        self.batch_size = batch_size
        self.writer = writer
        self.losses: list[float] = []
        self.began = 0.0
        self.stopped = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **_: Any) -> None:
        """Tell the sampler its epoch.

        With several workers accelerate does not reach it in the epoch that a resumed stage begins inside of, and the
        batches would come in the first epoch's order.
        """
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler.sampler.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock of the step."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and end the training when the run was asked to stop."""
        if state.global_step < state.max_steps and workers_stop(self.run, args.device):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """One line of metrics a step; TRL's summary at the end is left out."""
        if "loss" not in logs:
            return
        values = {"loss": logs["loss"], "grad_norm": float(logs["grad_norm"])}
        check_finite(self.stage, state.global_step, values)
        self.losses.append(values["loss"])
        if state.is_world_process_zero:
            speed = self.batch_size / (time.perf_counter() - self.began)
            extra = {"lr": logs["learning_rate"], "token_accuracy": logs["mean_token_accuracy"]}
            self.run.log(self.stage, state.global_step, values | extra | {"samples_per_s": speed})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the trainer's checkpoint, complete once every worker has written its part, to its final place."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.writer.adopt(written, state.global_step, score=-sum(self.losses) / len(self.losses))
        ray.train.report({"step": state.global_step, "loss": self.losses[-1]})
        self.losses.clear()
