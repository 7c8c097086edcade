"""The GRPO stage as a whole: engines, judges, boards and learner, and the loop that drives them.

    prompts -> engines -> judges -> groups -> experience board -> learner workers -> weights board -> engines

With max_staleness 0 the parts take turns. With k > 0 the engines sample the next step while the learner is at work, and
`Schedule` keeps every group within k versions of the learner that trains on it.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.boards import ExperienceBoard, WeightsBoard
from actors.checkpoints import Checkpoints
from actors.deadlines import CALL_SECONDS, START_SECONDS, wait_for
from actors.experience import (
    SampleOrder,
    Schedule,
    group_metrics,
    make_groups,
    make_shards,
    sample_rows,
)
from actors.fit import fit_stage, forget_after
from actors.learner import GrpoJob, learner_loop
from actors.messages import Group, Request, Sampling, WeightsHandle
from actors.prompts import PromptMaker
from actors.reward import score_all, start_judges
from actors.rollout import engines_ready, generate_all, start_engines, stop_actors, sync_engines
from hatch_ray.config import Config, ConfigError
from hatch_ray.model.base import model_source
from hatch_ray.rewards.score import RewardTarget
from hatch_ray.run_folder import RunFolder, append_jsonl, read_jsonl, write_atomic
from hatch_ray.sample import Sample

STAGE = "grpo"
MAX_REFUSED = 3
"""Batches in a row that come back too old before the run stops."""

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def choose_samples(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """The share of the samples that GRPO draws from, by seed."""
    count = max(1, round(fraction * len(samples)))
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    return [samples[index] for index in sorted(order[:count])]


def total_steps(config: Config, count: int) -> int:
    """Steps of the stage: by epochs over `count` samples, at most max_steps where that is set."""
    steps = max(1, math.floor(config.grpo.epochs * count / config.grpo.prompts_per_step))
    return min(steps, config.grpo.max_steps) if config.grpo.max_steps else steps


class LearnerThread(threading.Thread):
    """Ray Train's blocking `fit`, beside the driving loop. `check` raises what the learner died of."""

    def __init__(self, job: GrpoJob) -> None:
        super().__init__(name="grpo-learner", daemon=True)
        self.job = job
        self.error: BaseException | None = None

    def run(self) -> None:
        job, workers = self.job, self.job.config.learner.workers
        try:
            fit_stage(learner_loop, job, job.config, RunFolder(job.run), STAGE, workers, job.steps, lambda *_: None)
        except BaseException as error:  # noqa: BLE001 - handed to the driving thread, which raises it
            self.error = error

    def check(self) -> None:
        """Raise the learner's error, if it has one."""
        if self.error is not None:
            raise self.error


class GrpoRun:
    """One run of the stage: the actors and the loop. `drive` works until every step is learned and logged."""

    def __init__(self, config: Config, run: RunFolder, model: str | Path, samples: Sequence[Sample]) -> None:
        self.config, self.run = config, run
        self.samples = choose_samples(samples, config.grpo.fraction, config.seed)
        self.steps = total_steps(config, len(self.samples))
        latest = Checkpoints(run.checkpoints(STAGE)).latest()
        self.first = 0 if latest is None else Checkpoints.step(latest)
        self.source = str(model) if latest is None else str(latest / "model")
        self.maker = PromptMaker(config, model, for_learner=True)
        self.maker.check_length(self.samples, config.grpo.max_new_tokens)
        self.order = SampleOrder(len(self.samples), config.grpo.prompts_per_step, config.seed)
        self.schedule = Schedule(self.first, self.steps, config.grpo.max_staleness)
        self.sampling = Sampling(config.grpo.group_size, config.grpo.temperature, config.grpo.max_new_tokens)
        forget_after(run, STAGE, self.first)
        forget_samples(run.samples(STAGE), self.first)
        self.experience = ray.remote(ExperienceBoard).options(num_cpus=0, max_concurrency=100).remote()
        self.weights = ray.remote(WeightsBoard).options(num_cpus=0, max_concurrency=100).remote(self.first)
        job = GrpoJob(config, run.path, str(model), self.steps, self.experience, self.weights)
        self.learner = LearnerThread(job)
        self.engines: list[Any] = []
        self.judges: list[Any] = []
        self.pending: dict[int, dict[str, float]] = {}
        self.ready: dict[int, list[Request]] = {}

    def start(self) -> None:
        """Start learner, engines and judges at the same time, and wait for the engines."""
        self.learner.start()
        self.engines = start_engines(self.source, self.config, self.first)
        self.judges = start_judges(self.config)
        engines_ready(self.engines)

    def stop(self) -> None:
        """Let the learner end, then stop the actors."""
        self.experience.stop.remote()
        self.learner.join(timeout=60)
        stop_actors([*self.engines, *self.judges, self.experience, self.weights])

    def drive(self, report: Report) -> None:
        """Sample, judge, hand over, update the engines, log; until the last step is learned."""
        served, refused, start = self.first, 0, time.monotonic()
        while not self.schedule.done:
            version, handle = self._wait_for_version(self.schedule.needed_version)
            waited = time.monotonic() - start
            self._log(report)
            start = time.monotonic()
            if handle is not None and version > served:
                sync_engines(self.engines, handle)
                served = version
            synced = time.monotonic()
            step = self.schedule.start(served)
            groups, seconds = self.collect(step)
            if not self.schedule.admit(step, [group.rollout.version for group in groups]):
                refused += 1
                if refused >= MAX_REFUSED:
                    raise RuntimeError(f"grpo: {refused} batches in a row were older than grpo.max_staleness allows")
                continue
            refused = 0
            append_jsonl(self.run.samples(STAGE), sample_rows(step, groups, self.chosen(step)))
            shards = make_shards(step, groups, self.config.learner.workers)
            wait_for(self.experience.put.remote(shards), "grpo: handing over a batch", CALL_SECONDS, self.learner.check)
            self.pending[step] = group_metrics(step, groups) | seconds
            self.pending[step]["processed_per_image"] = self.maker.processed / self.maker.unique
            self.pending[step] |= {"seconds_wait": waited, "seconds_sync": synced - start}
            if not self.schedule.done:
                self.ready = {step + 1: self.requests(step + 1)}  # while the learner is at work
            start = time.monotonic()
        self._wait_for_version(self.steps)
        self._log(report)
        self.learner.join(timeout=START_SECONDS)
        self.learner.check()

    def _wait_for_version(self, version: int) -> tuple[int, WeightsHandle | None]:
        return wait_for(
            self.weights.wait_for.remote(version), f"grpo: step {version} of the learner",
            CALL_SECONDS + START_SECONDS, self.learner.check,
        )  # fmt: skip

    def chosen(self, step: int) -> list[Sample]:
        """The samples that a step asks."""
        return [self.samples[index] for index in self.order.indices(step)]

    def requests(self, step: int) -> list[Request]:
        """A step's prompts, with their images in the object store."""
        chosen = self.chosen(step)
        seeds = np.random.SeedSequence([self.config.seed, step]).generate_state(len(chosen))
        return [self.maker.request(sample, int(seed)) for sample, seed in zip(chosen, seeds, strict=True)]

    def collect(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """A step's groups, sampled and judged, and the seconds of both."""
        start = time.monotonic()
        requests = self.ready.pop(step, None) or self.requests(step)
        prepared = time.monotonic()
        rollouts = generate_all(self.engines, requests, self.sampling)
        sampled = time.monotonic()
        targets = [RewardTarget.from_sample(sample, self.maker.mode) for sample in self.chosen(step)]
        jobs = [(r.text, target) for rollout, target in zip(rollouts, targets, strict=True) for r in rollout.replies]
        groups = make_groups(requests, rollouts, score_all(self.judges, jobs))
        seconds = {
            "seconds_prepare": prepared - start,
            "seconds_generate": sampled - prepared,
            "seconds_reward": time.monotonic() - sampled,
        }
        return groups, seconds

    def _log(self, report: Report) -> None:
        """Write the metrics of every step that the learner has finished since."""
        reports = wait_for(self.experience.reports.remote(), "grpo: the learner's reports", CALL_SECONDS)
        for step, learned in sorted(reports.items()):
            metrics = self.pending.pop(step) | learned
            metrics["tokens_per_s"] = metrics["tokens"] / metrics["seconds"]
            self.run.log(STAGE, step + 1, metrics)
            report(step + 1, self.steps)

    def summary(self) -> dict[str, Any]:
        """Steps and one line: the mean reward terms of the first and the last tenth of the steps."""
        rows = [row for row in read_jsonl(self.run.metrics_path) if row["stage"] == STAGE]
        tenth = max(1, len(rows) // 10)
        parts = []
        for name in ("action", "answer", "format"):
            before, after = (
                [row[f"reward_{name}"] for row in part if row.get(f"reward_{name}") is not None]
                for part in (rows[:tenth], rows[-tenth:])
            )
            if before and after:
                parts.append(f"{name} {sum(before) / len(before):.3f} -> {sum(after) / len(after):.3f}")
        images = f"{self.maker.processed} images processed, {self.maker.unique} different ones"
        return {"steps": self.steps, "line": f"{self.steps} steps; reward in training: {', '.join(parts)}; {images}"}


def forget_samples(path: Path, step: int) -> None:
    """Drop logged replies of steps that a resumed run takes again (step counts from 0)."""
    rows = read_jsonl(path)
    kept = [row for row in rows if row["step"] < step]
    if len(kept) < len(rows):
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))


def run_grpo(
    config: Config, run: RunFolder, model: str | Path, samples: Sequence[Sample], report: Report
) -> dict[str, Any]:
    """The GRPO stage from `model` to RUN/grpo/model, resumed from its last checkpoint when there is one.

    Ray must be running. Returns {"steps": int, "line": what was achieved}. Raises ConfigError for prompts that do not
    fit, and whatever an actor or worker failed with, with the stage in its text.
    """
    if not samples:
        raise ConfigError("grpo: there are no training samples")
    # Ray Train changes its workers' directory, so the folder must be absolute.
    stage = GrpoRun(config, run, model_source(model), samples)
    try:
        stage.start()
        stage.drive(report)
    finally:
        stage.stop()
    return stage.summary()
