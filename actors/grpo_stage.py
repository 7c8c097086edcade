"""The GRPO stage as a whole: engines, reward actors, boards and learner, and the loop that drives them.

    prompts -> engines -> reward actors -> groups -> experience board -> learner workers -> weights board -> engines

With max_staleness 0 the parts take turns. With k > 0 the engines sample the next step while the learner is at work, and
`Schedule` keeps every group within k versions of the learner that trains on it.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.actor_pool import ActorPool, Failed
from actors.actor_set import SOURCE_LOST
from actors.boards import ExperienceBoard, WeightsBoard
from actors.checkpoints import Checkpoints
from actors.deadlines import StageTimeoutError, enter_process, expired, limits, wait_for
from actors.experience import (
    Schedule,
    group_metrics,
    make_groups,
    make_shards,
    sample_rows,
)
from actors.fit import before_restart, fit_stage
from actors.grpo_view import StageStatus, grpo_view
from actors.learner_loop import REPORTS, GrpoJob, learner_loop
from actors.ledger import Ledger, trained_row
from actors.live import Live
from actors.messages import Group, Request, Sampling, WeightsHandle
from actors.parity import make_probes
from actors.progress import Report
from actors.prompts import PromptMaker
from actors.recovery import RESTARTABLE, Recovery, WorkerDiedError, lost_part
from actors.reward import RewardActors
from actors.run_processes import RunProcesses
from actors.spans import Span, Spans
from actors.stopping import asked
from actors.train_workers import TrainWorkers
from hatch_ray.config import Config, ConfigError
from hatch_ray.learning.health import Health
from hatch_ray.learning.order import SampleOrder
from hatch_ray.model.source import model_source
from hatch_ray.rewards.check import check_scores
from hatch_ray.rewards.score import RewardTarget
from hatch_ray.run_folder import RunFolder, append_jsonl, read_jsonl, write_atomic
from hatch_ray.sample import Sample

log = logging.getLogger("hatch_ray")
STAGE = "grpo"
TOLD_SECONDS = 20.0
"""How long after the loss of an object the loss of the worker that held it may be told."""
MAX_REFUSED = 3
"""Batches in a row that come back too old before the run stops."""


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
    """The learner's workers at work, beside the driving loop. `check` raises what the learner died of."""

    def __init__(self, job: GrpoJob, workers: TrainWorkers) -> None:
        super().__init__(name="grpo-learner", daemon=True)
        self.job, self.workers = job, workers
        self.error: BaseException | None = None

    def run(self) -> None:
        job, count = self.job, self.job.config.learner.workers
        run = RunFolder(job.run)
        try:
            fit_stage(self.workers, learner_loop, job, run, STAGE, count, job.steps, lambda *_: None)
        except BaseException as error:  # noqa: BLE001 - handed to the driving thread, which raises it
            self.error = error

    def check(self) -> None:
        """Raise the learner's error, if it has one."""
        if self.error is not None:
            raise self.error


class GrpoRun:
    """One run of the stage: the actors and the loop. `drive` works until every step is learned and logged."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        model: str | Path,
        samples: Sequence[Sample],
        recovery: Recovery,
        live: Live,
        processes: RunProcesses,
    ) -> None:
        self.config, self.run, self.recovery, self.live = config, run, recovery, live
        self.processes, self.closing = processes, ExitStack()
        self.began = time.time()
        self.samples = choose_samples(samples, config.grpo.fraction, config.seed)
        self.steps = total_steps(config, len(self.samples))
        latest = Checkpoints(run.checkpoints(STAGE)).latest()
        self.first = 0 if latest is None else Checkpoints.step(latest)
        self.checkpoint = latest
        self.maker = PromptMaker(config, model, for_learner=True)
        self.maker.check_length(self.samples, config.grpo.max_new_tokens)
        self.probes = make_probes(self.samples, self.maker)
        self.order = SampleOrder(len(self.samples), config.grpo.prompts_per_step, config.seed)
        self.schedule = Schedule(self.first, self.steps, config.grpo.max_staleness)
        self.sampling = Sampling(config.grpo.group_size, config.grpo.temperature, config.grpo.max_new_tokens)
        self.ledger = Ledger(run.ledger)
        self.ledger.restore(latest)
        run.forget_after(STAGE, self.first)
        forget_samples(run.samples(STAGE), self.first)
        self.health = Health(config.grpo)
        for row in read_jsonl(run.metrics_path):
            if row["stage"] == STAGE:
                self.health.add(row["step"], row)
        self._log_missing(latest)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = {"num_cpus": 0, "max_concurrency": 100, "scheduling_strategy": here}
        self.experience = ray.remote(ExperienceBoard).options(**board).remote()
        self.weights = ray.remote(WeightsBoard).options(**board).remote(self.first)
        boards = (self.experience, self.weights)
        enter_process("driver", config.model_copy(update={"run_dir": run.path}), boards, first=True)
        self.job = GrpoJob(config, run.path, str(model), self.steps, *boards, self.probes)
        self.pending: dict[int, list[dict[str, Any]]] = {}
        self.ready: dict[int, list[Request]] = {}
        self.learner = LearnerThread(self.job, processes.workers)
        self.pools: dict[str, ActorPool] = {}
        self.phase = "start"
        self.served = 0
        self.latest: dict[str, float] = {}
        self.spans = Spans(run.spans, self.first)

    def start(self) -> None:
        """Start what does not run yet of learner, engines and reward actors, and let the engines show that they compute
        what the learner computes. The reward actors come last: the smallest fit into what the others leave.
        """
        config, lost = self.config, self.recovery.actor_lost
        self.learner.start()
        beside: list[str] = []
        if config.colocated:
            up = self.experience.nodes.remote(config.learner.workers)
            beside = list(wait_for(up, "grpo: the learner's start", limits.start, self.learner.check).values())
        self.engines = self.closing.enter_context(self.processes.engines(self.job.model, lost, beside))
        self.rewards = RewardActors(config, lost)
        self.closing.callback(self.rewards.stop)
        self.pools |= {"rollout": self.engines.pool, "reward": self.rewards.pool}
        self.engines.pool.meanwhile = self.rewards.pool.actors.tend
        self.rewards.pool.meanwhile = self.engines.pool.actors.tend
        weights = Path(self.job.model) if self.checkpoint is None else self.checkpoint / "model"
        if self.engines.held.folder != str(weights):
            self.engines.load_folder(weights, self.first)
        learner = self.experience.probes.remote()
        self.engines.check(wait_for(learner, "grpo: the learner's probes", limits.start, self.learner.check))
        nodes = list(wait_for(self.experience.nodes.remote(), "grpo: where the learner is", 60).values())
        view = grpo_view(config, self.pools, self.rewards.waits, nodes, self.status)
        self.live.show(view)
        for role, count in list(self.live.by_hand.items()):
            if why := view.roles[role].refusal:
                log.warning("%s=%d, asked for before GRPO, is left out: %s", role, count, why)
            else:
                view.roles[role].actors.fix(count)

    def stop(self) -> None:
        """Let the learner end, then stop the actors."""
        self.live.show(None)
        try:
            wait_for(self.experience.stop.remote(), "grpo: the end of the stage", 60)
        except (ray.exceptions.RayActorError, StageTimeoutError) as error:  # the board may be what died
            log.info("the learner could not be told that the stage ends: %s", error)
        if self.learner.is_alive():
            self.learner.join(timeout=60)
        if self.learner.is_alive():
            self.processes.workers.abandon()
        self.closing.close()
        for board in (self.experience, self.weights):
            ray.kill(board)

    def drive(self, report: Report) -> None:
        """Sample, judge, hand over, update the engines, log; until the last step is learned.

        Raises StopAsked when SIGTERM asked for an end and the learner has saved the last step that was sampled.
        """
        refused, start = 0, time.monotonic()
        self.served = self.first
        while not self.schedule.done and not asked():
            with self.at(self.schedule.next_step, "wait for the learner"):
                version, handle = self._wait_for_version(self.schedule.needed_version)
            waited = time.monotonic() - start
            self._log(report)
            start = time.monotonic()
            if handle is not None and version > self.served:
                with self.at(self.schedule.next_step, "sync"):
                    self.engines.sync(handle)
                self.served = version
            synced = time.monotonic()
            step = self.schedule.start(self.served)
            places, groups, seconds = self.collect(step)
            if not self.schedule.admit(step, [group.rollout.version for group in groups]):
                refused += 1
                if refused >= MAX_REFUSED:
                    raise RuntimeError(f"grpo: {refused} batches in a row were older than grpo.max_staleness allows")
                continue
            refused = 0
            chosen = self.chosen(step)
            samples = [chosen[place] for place in places]
            append_jsonl(self.run.samples(STAGE), sample_rows(step, groups, samples))
            first = step * self.config.grpo.prompts_per_step
            rows = [
                trained_row(step, first + place, sample.id, group.rollout.version)
                for place, sample, group in zip(places, samples, groups, strict=True)
            ]
            metrics = group_metrics(step, groups) | seconds
            metrics["processed_per_image"] = self.maker.processed / self.maker.unique
            metrics |= {"seconds_wait": waited, "seconds_sync": synced - start}
            self.pending[step] = rows
            shards = make_shards(step, groups, self.config.learner.workers, rows, metrics)
            with self.at(step, "hand over"):
                put = self.experience.put.remote(shards)
                wait_for(put, "grpo: handing over a batch", limits.call, self.learner.check)
            if not self.schedule.done:
                with self.at(step + 1, "prepare"):  # while the learner is at work
                    self.ready = {step + 1: self.requests(step + 1)}
            start = time.monotonic()
        self.phase = "wait for the learner"
        self._wait_for_version(self.schedule.next_step)
        self._log(report)
        if not self.schedule.done:
            wait_for(self.experience.stop.remote(save=True), "grpo: the end as asked", limits.call)
        self.learner.join(timeout=limits.start)
        self.learner.check()
        if self.learner.is_alive():
            raise expired("grpo: the learner's end", limits.start)
        if problems := self.ledger.problems(self.steps, self.config.grpo.prompts_per_step):
            raise RuntimeError(f"grpo: {self.ledger.path} is not whole: {'; '.join(problems[:10])}")

    @contextmanager
    def at(self, step: int, phase: str) -> Iterator[None]:
        """The driver is in this phase of a step: for `hatch status` and `hatch trace`."""
        self.phase, began = phase, time.time()
        yield
        self.spans.add(step, Span("driver", 0, phase, began, time.time()))

    def _wait_for_version(self, version: int) -> tuple[int, WeightsHandle | None]:
        return wait_for(
            self.weights.wait_for.remote(version), f"grpo: step {version} of the learner",
            limits.call + limits.start, self._tend,
        )  # fmt: skip

    def _tend(self) -> None:
        """What the driver does while it waits: look after the learner and after the sizes of the pools."""
        self.learner.check()
        for pool in self.pools.values():
            pool.actors.tend()

    def chosen(self, step: int) -> list[Sample]:
        """The samples of a step, those that are set aside included."""
        return [self.samples[index] for index in self.order.indices(step)]

    def requests(self, step: int) -> list[Request]:
        """A step's prompts, with their images in the object store."""
        chosen = self.chosen(step)
        seeds = np.random.SeedSequence([self.config.seed, step]).generate_state(len(chosen))
        return [self.maker.request(sample, int(seed)) for sample, seed in zip(chosen, seeds, strict=True)]

    def collect(self, step: int) -> tuple[list[int], list[Group], dict[str, float]]:
        """A step's groups, sampled and judged, with their places in the step, and the seconds of both.

        Samples that fail every engine or reward actor are set aside, from now on.
        """
        start = time.monotonic()
        chosen, requests = self.chosen(step), self.ready.pop(step, [])
        if not requests:
            with self.at(step, "prepare"):
                requests = self.requests(step)
        prepared = time.monotonic()
        known = self.ledger.aside
        places = [place for place, sample in enumerate(chosen) if sample.id not in known]
        for place in sorted(set(range(len(chosen))) - set(places)):
            self._set_aside(step, place, "set aside at an earlier step")
        with self.at(step, "generate"):
            found = self.engines.try_generate([requests[place] for place in places], self.sampling)
        self.spans.work(step, "rollout", self.engines.pool, places)
        rollouts = {}
        for place, rollout in zip(places, found, strict=True):
            if isinstance(rollout, Failed):
                self._set_aside(step, place, rollout.reason)
            else:
                rollouts[place] = rollout
        sampled = time.monotonic()
        targets = {place: RewardTarget.from_sample(chosen[place], self.maker.mode) for place in rollouts}
        jobs = [(reply.text, targets[place]) for place, rollout in rollouts.items() for reply in rollout.replies]
        size = self.sampling.n
        with self.at(step, "reward"):
            scores = self.rewards.score(jobs)
        self.spans.work(step, "reward", self.rewards.pool, [place for place in rollouts for _ in range(size)])
        judged: dict[int, list[dict[str, Any]]] = {}
        for number, place in enumerate(rollouts):
            part: list[dict[str, Any]] = []
            failed = ""
            for score in scores[number * size : (number + 1) * size]:
                if isinstance(score, Failed):
                    failed = failed or score.reason
                else:
                    part.append(score)
            if failed:
                self._set_aside(step, place, failed)
            elif problems := check_scores(chosen[place].id, part, self.config.reward):
                self._set_aside(step, place, "; ".join(problems))
            else:
                judged[place] = part
        groups = make_groups(
            [requests[place] for place in judged],
            [rollouts[place] for place in judged],
            [score for part in judged.values() for score in part],
        )
        seconds = {
            "seconds_prepare": prepared - start,
            "seconds_generate": sampled - prepared,
            "seconds_reward": time.monotonic() - sampled,
        }
        return list(judged), groups, seconds

    def _set_aside(self, step: int, place: int, reason: str) -> None:
        sample = self.chosen(step)[place].id
        if self.ledger.set_aside(step, step * self.config.grpo.prompts_per_step + place, sample, reason):
            self.recovery.set_aside(sample, reason, len(self.ledger.aside), len(self.samples))

    def _log(self, report: Report) -> None:
        """Write the metrics of every step that the learner has finished since, and its groups into the ledger."""
        reports = wait_for(self.experience.reports.remote(), "grpo: the learner's reports", limits.call)
        for step, metrics in sorted(reports.items()):
            rows = self.pending.pop(step)
            self.ledger.append(rows)
            learned = Span("learner", 0, "learn", metrics["time_began"], metrics["time_ended"])
            self.spans.add(step, learned)
            self.spans.close(step)
            metrics |= self.recovery.step_done(step)
            self._write(step, metrics)
            self.live.metrics.step(metrics, len(rows))
            report(step + 1, self.steps)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        metrics = {name: value for name, value in metrics.items() if name not in ("time_began", "time_ended")}
        self.latest = metrics
        warnings = self.health.add(step + 1, metrics)
        self.run.log(STAGE, step + 1, metrics | {"tokens_per_s": metrics["tokens"] / metrics["seconds"]}, warnings)
        for text in warnings:
            print(f"{STAGE}: step {step + 1}: {text}", flush=True)

    def _log_missing(self, checkpoint: Path | None) -> None:
        """A learner that died right after a checkpoint has not reported the last steps behind it: they lie in it."""
        if checkpoint is None:
            return
        rows = [row["step"] for row in read_jsonl(self.run.metrics_path) if row["stage"] == STAGE]
        for row in read_jsonl(checkpoint / REPORTS):
            if row["step"] >= max(rows, default=0):
                self._write(row.pop("step"), row)

    def status(self) -> StageStatus:
        """For `hatch status`."""
        aside = len(self.ledger.aside)
        return StageStatus(self.phase, self.served, self.schedule.next_step, aside, self.latest)

    def cause(self, error: Exception) -> Exception:
        """What was lost. Weights that are gone went with the worker that held them, which Ray Train tells later."""
        if isinstance(error, SOURCE_LOST):
            self.learner.join(timeout=TOLD_SECONDS)
            if isinstance(self.learner.error, WorkerDiedError):
                return self.learner.error
        return error

    def lost(self) -> tuple[int, float]:
        """What a restart does again: groups, and seconds since the last checkpoint (or the start)."""
        latest = Checkpoints(self.run.checkpoints(STAGE)).latest()
        step = 0 if latest is None else Checkpoints.step(latest)
        since = self.began if latest is None else max(self.began, latest.stat().st_mtime)
        return max(0, self.schedule.next_step - step) * self.config.grpo.prompts_per_step, time.time() - since

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
    config: Config,
    run: RunFolder,
    model: str | Path,
    samples: Sequence[Sample],
    report: Report,
    live: Live | None = None,
    processes: RunProcesses | None = None,
) -> dict[str, Any]:
    """The GRPO stage from `model` to RUN/grpo/model, resumed from its last checkpoint when there is one.

    Ray must be running. Engines and reward actors that die are replaced; when the learner or a board dies, the stage
    starts again from its last checkpoint. `live` shows the run's state and scales its pools. Returns
    {"steps": int, "line": what was achieved}. Raises ConfigError for prompts that do not fit, RuntimeError when
    processes keep dying, and whatever an actor or worker failed with, with the stage in its text. processes: the run's;
    where None, the stage starts its own.
    """
    if processes is None:
        with RunProcesses(config, run) as own:
            return run_grpo(config, run, model, samples, report, live, own)
    if not samples:
        raise ConfigError("grpo: there are no training samples")
    recovery = Recovery(run, STAGE, config.recovery)
    live = live or Live(run, config.stages, config.deadlines)
    while True:
        # Ray Train changes its workers' directory, so the folder must be absolute.
        stage = GrpoRun(config, run, model_source(model), samples, recovery, live, processes)
        try:
            stage.start()
            stage.drive(report)
            return stage.summary()
        except RESTARTABLE as error:
            groups, seconds = stage.lost()
            recovery.stage_lost(*lost_part(stage.cause(error)), seconds, groups)
            lost: BaseException = error
        finally:
            stage.stop()
        before_restart(config, STAGE, lost)
