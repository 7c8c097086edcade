"""PaStA and the two supervised stages in Ray Train: one resumable `fit` a stage, from model folder to model folder.

PaStA is our own loop (DistributedDataParallel over the image encoder); the supervised stages are TRL's SFTTrainer.
Rank 0 logs and saves. Checkpoints (`actors/checkpoints.py`) lie in the run folder, which all nodes share.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.huggingface.transformers import prepare_trainer
from ray.train.torch import get_device, prepare_model
from transformers import TrainerCallback, get_scheduler

from actors.checkpoints import Checkpoints, CheckpointWriter
from actors.fit import fit_supervised, forget_after, stage_workers
from actors.stopping import workers_stop
from hatch_ray.config import Config, SftConfig, Trained
from hatch_ray.learning.pasta import (
    PairOrder,
    PairTargets,
    PastaObjective,
    Retrieval,
    example_matches,
    make_batch,
    make_targets,
    patch_retrieval,
)
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.learning.sft import (
    SampleEncoder,
    choose_samples,
    make_trainer,
    total_steps,
    trl_config,
)
from hatch_ray.learning.trainer_state import read_state, restore_state, take_state, write_state
from hatch_ray.model.base import load_model, load_processor, part_checksum, save_model, set_trainable
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.protocol.prompt import stage_mode
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic
from hatch_ray.sample import Sample

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

HELDOUT_PAIRS = 400
"""Held-out pairs that patch retrieval is judged on, drawn by seed when there are more."""


def check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    """Raise FloatingPointError naming the stage, the step and what to change when a value is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{stage}: {name} is {value} at step {step}; lower {stage}.lr, or raise {stage}.warmup_steps. "
                "The run goes on from its last checkpoint when started again"
            )


# --- PaStA ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PastaJob:
    """What a PaStA worker needs."""

    config: Config
    run: Path
    model: str
    train: PairTargets
    heldout: PairTargets
    steps: int


def run_pasta(
    config: Config,
    run: RunFolder,
    model: str | Path,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    report: Report,
) -> dict[str, Any]:
    """Train the image encoder (eqs. 1 to 5), from `model` to RUN/pasta/model.

    Writes RUN/eval/patch_retrieval.json and patch_matches.json for pairs of the held-out samples. Returns "steps",
    "line" (what was achieved) and the retrieval before and after. Raises ValueError when no views overlap.
    """
    settings = config.pasta
    folder = run.path / "pasta"
    targets = make_targets(train, settings, folder / "train_overlap.npz", report)
    judged = make_targets(heldout, settings, folder / "heldout_overlap.npz", report).draw(HELDOUT_PAIRS, config.seed)
    steps = settings.max_steps or math.ceil(settings.epochs * len(targets.pairs) / settings.batch_size)
    job = PastaJob(config, run.path, str(model), targets, judged, steps)
    Checkpoints(run.checkpoints("pasta")).latest()  # a bad one is set aside, and told, before the workers start
    fit_supervised(pasta_loop, job, config, run, "pasta", stage_workers(config, settings.batch_size), steps, report)
    result = json.loads(run.evaluation("patch_retrieval").read_text(encoding="utf-8"))
    before, after = result["before"], result["after"]
    line = (
        f"patch retrieval on held-out views {before['mean']:.1%} -> {after['mean']:.1%} "
        f"[{after['low']:.1%}, {after['high']:.1%}], {result['n']} patches; {len(targets.pairs)} training pairs"
    )
    return {"steps": steps, "line": line, "pairs": len(targets.pairs)} | result


def pasta_loop(settings: dict[str, Any]) -> None:
    """One worker's PaStA: its share of every batch, gradients averaged over workers."""
    job: PastaJob = ray.get(settings["job"])
    config, run = job.config, RunFolder(job.run)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)
    model = load_model(job.model)
    if config.learner.gpus == 0:
        speed_up_vision(model)
    processor = load_processor(job.model, config.model.max_pixels)
    set_trainable(model, "vision")
    language = part_checksum(model, "language")
    device = get_device()
    visual = model.model.visual.to(device)
    pixels = PixelCache(processor)
    before = patch_retrieval(visual, job.heldout, pixels, config.pasta) if rank == 0 else None
    trained = prepare_model(PastaObjective(visual, config.pasta))
    optimizer = torch.optim.AdamW(visual.parameters(), lr=config.pasta.lr, weight_decay=config.pasta.weight_decay)
    scheduler = make_scheduler(optimizer, config.pasta, job.steps)
    checkpoints = Checkpoints(run.checkpoints("pasta"), config.checkpoints)
    start = 0
    if (latest := checkpoints.latest()) is not None:
        restore_state(read_state(latest), visual.state_dict(), optimizer, scheduler)
        start = checkpoints.step(latest)
    if rank == 0:
        forget_after(run, "pasta", start)
    order = PairOrder([pair.scene for pair in job.train.pairs], config.pasta.batch_size, config.seed)
    half = config.model.dtype == "bfloat16"
    visual.train()
    losses: list[float] = []
    with CheckpointWriter(checkpoints) as writer:
        for step in range(start, job.steps):
            began = time.perf_counter()
            batch = make_batch(job.train, order.batch(step)[rank::world], pixels).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = trained(batch)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(visual.parameters(), config.pasta.grad_clip)
            total = loss.detach().clone()
            if world > 1:
                torch.distributed.all_reduce(total)
            values = {"loss": total.item() / world, "grad_norm": norm.item()}
            check_finite("pasta", step + 1, values)
            losses.append(values["loss"])
            rate = scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()
            if rank == 0:
                speed = config.pasta.batch_size / (time.perf_counter() - began)
                run.log("pasta", step + 1, values | {"lr": rate, "samples_per_s": speed})
            stop = step + 1 < job.steps and workers_stop(run, device)
            if stop or (step + 1) % config.pasta.save_every == 0 or step + 1 == job.steps:
                if rank == 0:
                    snapshot = partial(take_snapshot, visual, optimizer, scheduler)
                    writer.save(step + 1, snapshot, score=-sum(losses) / len(losses))
                losses.clear()
                ray.train.report({"step": step + 1, "loss": values["loss"]})
            if stop:
                return
    if rank == 0:
        assert before is not None
        after = patch_retrieval(visual, job.heldout, pixels, config.pasta)
        if part_checksum(model, "language") != language:
            raise RuntimeError("PaStA changed weights outside the image encoder")
        write_retrieval(run, job, before, after)
        save_model(model.to("cpu", getattr(torch, config.model.dtype)), processor, run.stage_model("pasta"))


def take_snapshot(visual: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> Callable[[Path], None]:
    """Copy the state in memory; what is returned writes it into a checkpoint's folder."""
    return partial(write_state, take_state(visual.state_dict(), optimizer, scheduler))


def make_scheduler(optimizer: torch.optim.Optimizer, config: Trained, steps: int) -> Any:
    """The schedule of a stage in transformers' terms, as TRL uses it too."""
    name = "cosine" if config.schedule == "cosine" else "constant_with_warmup"
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps)


def write_retrieval(run: RunFolder, job: PastaJob, before: Retrieval, after: Retrieval) -> None:
    """RUN/eval/patch_retrieval.json and patch_matches.json."""
    table = {"before": before.summary(), "after": after.summary(), "n": after.n, "pairs": len(job.heldout.pairs)}
    write_atomic(run.evaluation("patch_retrieval"), json.dumps(table, indent=2))
    matches = example_matches(job.heldout, before, after, job.config.pasta)
    write_atomic(run.evaluation("patch_matches"), json.dumps(matches))


# --- QA SFT and cold start --------------------------------------------------------------------------------------


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
