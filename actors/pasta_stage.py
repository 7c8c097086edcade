"""PaStA in Ray Train: one resumable `fit`, from model folder to model folder.

Our own loop: DistributedDataParallel over the image encoder alone. Rank 0 logs and saves. Checkpoints
(`actors/checkpoints.py`) lie in the run folder, which all nodes share.
"""

from __future__ import annotations

import json
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
from ray.train.torch import get_device, prepare_model
from transformers import get_scheduler

from actors.checkpoints import Checkpoints, CheckpointWriter
from actors.fit import check_finite, fit_supervised, forget_after, stage_workers
from actors.progress import Report
from actors.stopping import workers_stop
from hatch_ray.config import Config
from hatch_ray.config_sections import Trained
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
from hatch_ray.learning.trainer_state import read_state, restore_state, take_state, write_state
from hatch_ray.model.base import load_model, load_processor, part_checksum, save_model, set_trainable
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.sample import Sample

HELDOUT_PAIRS = 400
"""Held-out pairs that patch retrieval is judged on, drawn by seed when there are more."""


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
    counts = {"judged": after.judged, "before": before.right, "after": after.right}
    by_pair = {name: values.astype(int).tolist() for name, values in counts.items()}
    table["by_pair"] = {"scene": [pair.scene for pair in job.heldout.pairs], **by_pair}
    write_atomic(run.evaluation("patch_retrieval"), json.dumps(table, indent=2))
    matches = example_matches(job.heldout, before, after, job.config.pasta)
    write_atomic(run.evaluation("patch_matches"), json.dumps(matches))
