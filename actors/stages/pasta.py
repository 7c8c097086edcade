"""PaStA in Ray Train: one resumable stage, from model folder to model folder.

DistributedDataParallel holds the image encoder alone.
"""

from __future__ import annotations

import json
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
from actors.stages.gauge import Gauge, make_gauge, measure_share, write_kept
from actors.stages.run_processes import RunProcesses
from actors.stages.supervised import Lesson, train
from hatch_ray.config import Config
from hatch_ray.config_sections import PastaConfig
from hatch_ray.data.store import stage_steps
from hatch_ray.evaluation.kept import row_text
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
from hatch_ray.learning.workers import Workers, save_trained
from hatch_ray.model.base import (
    computing,
    load_model,
    load_processor,
    part_checksum,
    recompute_activations,
    set_trainable,
    unfilled_model,
)
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
    stage: str
    model: str
    train: PairTargets
    heldout: PairTargets
    gauge: Gauge
    steps: int


def run_pasta(
    stage: str,
    config: Config,
    run: RunFolder,
    model: str | Path,
    samples: Sequence[Sample],
    heldout: Sequence[Sample],
    report: Report,
    processes: RunProcesses | None = None,
) -> dict[str, Any]:
    """Train the image encoder (eqs. 1 to 5), from `model` to RUN/<stage>/model.

    Writes RUN/eval/patch_retrieval.json and patch_matches.json for pairs of the held-out samples, and kept.json
    (`gauge`). Returns "steps", "line" (what was achieved), "warnings" (what got worse) and the retrieval before and
    after. Raises ValueError when no views overlap.
    """
    settings: PastaConfig = config.settings(stage)
    folder = run.path / stage
    targets = make_targets(samples, settings, folder / "train_overlap.npz", report)
    judged = make_targets(heldout, settings, folder / "heldout_overlap.npz", report).draw(HELDOUT_PAIRS, config.seed)
    steps = stage_steps(settings, len(targets.pairs), settings.batch_size)
    gauge = make_gauge(config, stage, model, heldout)
    job = PastaJob(config, run.path, stage, str(model), targets, judged, gauge, steps)
    Checkpoints(run.checkpoints(stage)).latest()  # a bad one is set aside, and told, before the workers start
    fit_supervised(processes, pasta_loop, job, config, run, stage, steps, report)
    result = json.loads(run.evaluation("patch_retrieval").read_text(encoding="utf-8"))
    before, after = result["before"], result["after"]
    line = (
        f"patch retrieval on held-out views {before['mean']:.1%} -> {after['mean']:.1%} "
        f"[{after['low']:.1%}, {after['high']:.1%}], {result['n']} patches; {len(targets.pairs)} training pairs"
    )
    kept = write_kept(gauge, run, config.eval.bootstrap)
    if kept["kept"]:
        line += "; " + ", ".join(map(row_text, kept["kept"]))
    return {"steps": steps, "line": line, "warnings": kept["warnings"], "pairs": len(targets.pairs)} | result


def pasta_loop(job: PastaJob) -> None:
    """One worker's PaStA: its share of every batch, gradients averaged over workers."""
    config, run = job.config, RunFolder(job.run)
    settings: PastaConfig = config.settings(job.stage)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)
    device = get_device()
    workers = Workers(config.learner, device, rank, world, context.get_local_world_size())
    # The encoder's weights reach the other workers when it is wrapped; only the first one has the rest.
    model = (load_model if rank == 0 else unfilled_model)(job.model, config.learner.master)
    speed_up_vision(model, device)
    recompute_activations(model, config.learner.recompute, device)
    processor = load_processor(job.model, config.model.max_pixels)
    set_trainable(model, "vision")
    language = part_checksum(model, "language") if rank == 0 else ""
    visual = model.model.visual.to(device)
    pixels = PixelCache(processor)
    objective = PastaObjective(workers.shard(visual), settings)
    trained = objective if workers.sharded else workers.wrap(objective)
    judging = rank == 0 or workers.sharded  # what a sharded encoder computes, all workers compute together
    before = patch_retrieval(visual, job.heldout, pixels, settings) if judging else None
    order = PairOrder([pair.scene for pair in job.train.pairs], settings.batch_size, config.seed)
    visual.train()

    def loss(step: int) -> torch.Tensor:
        batch = make_batch(job.train, order.batch(step)[rank::world], pixels).to(device)
        with computing(visual, config.learner.compute, device):
            found: torch.Tensor = trained(batch)
        return found

    weights = dict(visual.named_parameters())
    finished = train(Lesson(job.stage, settings, job.steps, workers, weights, loss), config, run)
    if judging and finished:
        assert before is not None
        after = patch_retrieval(visual, job.heldout, pixels, settings)
        if rank == 0:
            if part_checksum(model, "language") != language:
                raise RuntimeError("PaStA changed weights outside the image encoder")
            write_retrieval(run, job, before, after)
        save_trained(workers, model, job.model, config.learner.master, processor, run.stage_model(job.stage))
    if finished and context.get_node_rank() == 0:
        on_node = context.get_local_rank(), context.get_local_world_size()
        measure_share(job.gauge, run, job.model, *on_node, device)


def write_retrieval(run: RunFolder, job: PastaJob, before: Retrieval, after: Retrieval) -> None:
    """RUN/eval/patch_retrieval.json and patch_matches.json."""
    table = {"before": before.summary(), "after": after.summary(), "n": after.n, "pairs": len(job.heldout.pairs)}
    counts = {"judged": after.judged, "before": before.right, "after": after.right}
    by_pair = {name: values.astype(int).tolist() for name, values in counts.items()}
    table["by_pair"] = {"scene": [pair.scene for pair in job.heldout.pairs], **by_pair}
    write_atomic(run.evaluation("patch_retrieval"), json.dumps(table, indent=2))
    matches = example_matches(job.heldout, before, after, job.config.settings(job.stage))
    write_atomic(run.evaluation("patch_matches"), json.dumps(matches))
