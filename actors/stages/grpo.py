"""The GRPO stage as a whole: engines, reward actors, boards and learner, and the loop that drives them.

    Collector.collect -> Batch -> experience board -> learner workers -> weights board -> engines

With max_staleness 0 the parts take turns. With k > 0 the engines sample the next step while the learner is at work, and
`Schedule` keeps every group within k versions of the learner that trains on it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.experience.batch import Schedule
from actors.experience.collect import Collector
from actors.experience.queues import ExperienceBoard, WeightsBoard, hand_over
from actors.learner.worker import GrpoJob, learner_loop
from actors.reward.verifier import RewardActors
from actors.rollout.prompts import PromptMaker, Questions
from actors.runtime.actor_pool import ActorPool
from actors.runtime.actor_set import SOURCE_LOST
from actors.runtime.checkpoints import Checkpoints
from actors.runtime.deadlines import StageTimeoutError, enter_process, expired, limits, wait_for
from actors.runtime.messages import WeightsHandle
from actors.runtime.progress import Report
from actors.runtime.recovery import RESTARTABLE, Recovery, WorkerDiedError, lost_part
from actors.runtime.spans import Span, Spans
from actors.runtime.stage_status import StageStatus, grpo_view
from actors.runtime.status import Live
from actors.runtime.stopping import asked
from actors.stages.fit import before_restart, fit_stage
from actors.stages.grpo_record import STAGE, Record
from actors.stages.run_processes import RunProcesses
from actors.stages.train_workers import TrainWorkers
from actors.weights.parity import make_probes
from hatch_ray.config import Config, ConfigError
from hatch_ray.data.store import stage_steps
from hatch_ray.model.source import model_source
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample

log = logging.getLogger("hatch_ray")
TOLD_SECONDS = 20.0
"""How long after the loss of an object the loss of the worker that held it may be told."""


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
        latest = Checkpoints(run.checkpoints(STAGE)).latest()
        self.first = 0 if latest is None else Checkpoints.step(latest)
        self.checkpoint = latest
        self.maker = PromptMaker(config, model, STAGE, for_learner=True)
        self.sampler = self.maker.system.sampler(samples)
        self.steps = stage_steps(config.grpo, len(self.sampler.known), config.grpo.prompts_per_step)
        self.maker.check_length(self.sampler.known, config.grpo.max_new_tokens)
        self.schedule = Schedule(self.first, self.steps, config.grpo.max_staleness)
        self.record = Record(config, run, self.maker.system, self.sampler, self.first, latest)
        self.spans = Spans(run.spans, self.first)
        self.questions = Questions(config, self.maker, self.sampler, self.spans)
        self.collector = Collector(config, self.questions, self.record.ledger, recovery, self.spans)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = {"num_cpus": 0, "max_concurrency": 100, "scheduling_strategy": here}
        self.experience = ray.remote(ExperienceBoard).options(**board).remote()
        self.weights = ray.remote(WeightsBoard).options(**board).remote(self.first)
        boards = (self.experience, self.weights)
        enter_process("driver", config.model_copy(update={"run_dir": run.path}), boards, first=True)
        probes = make_probes(self.sampler.known, self.maker)
        self.job = GrpoJob(config, run.path, str(model), self.steps, *boards, probes)
        self.learner = LearnerThread(self.job, processes.workers)
        self.pools: dict[str, ActorPool] = {}
        self.served = self.first

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
        self.collector.engines, self.collector.rewards = self.engines, self.rewards
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
        """Sample, reward, hand over, update the engines, log; until the last step is learned.

        Raises StopAsked when SIGTERM asked for an end and the learner has saved the last step that was sampled.
        """
        while not self.schedule.done and not asked():
            seconds = self._catch_up(report)
            step = self.schedule.start(self.served)
            batch = self.collector.collect(step)
            if not self.schedule.admit(step, batch.versions):
                continue
            self.record.sampled(batch, seconds)
            with self.spans.at(step, "hand over"):
                put = hand_over(self.experience, batch, self.config.learner.workers)
                wait_for(put, "grpo: handing over a batch", limits.call, self.learner.check)
            if not self.schedule.done:
                self.questions.prepare(step + 1)  # while the learner is at work
        self._finish(report)

    def _catch_up(self, report: Report) -> dict[str, float]:
        """Wait for weights that the next step may be sampled with, give them to the engines; the seconds of both."""
        start = time.monotonic()
        step = self.schedule.next_step
        with self.spans.at(step, "wait for the learner"):
            version, handle = self._wait_for_version(self.schedule.needed_version)
        waited = time.monotonic()
        self._log(report)
        began = time.monotonic()
        if handle is not None and version > self.served:
            with self.spans.at(step, "sync"):
                self.engines.sync(handle)
            self.served = version
        return {"seconds_wait": waited - start, "seconds_sync": time.monotonic() - began}

    def _finish(self, report: Report) -> None:
        """Until the last step that was sampled is learned and saved, and the learner has ended."""
        self.spans.phase = "wait for the learner"
        self._wait_for_version(self.schedule.next_step)
        self._log(report)
        if not self.schedule.done:
            wait_for(self.experience.stop.remote(save=True), "grpo: the end as asked", limits.call)
        self.learner.join(timeout=limits.start)
        self.learner.check()
        if self.learner.is_alive():
            raise expired("grpo: the learner's end", limits.start)
        if problems := self.record.ledger.problems(self.steps, self.config.grpo.prompts_per_step):
            raise RuntimeError(f"grpo: {self.record.ledger.path} is not whole: {'; '.join(problems[:10])}")

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

    def _log(self, report: Report) -> None:
        """Write the metrics of every step that the learner has finished since."""
        reports = wait_for(self.experience.reports.remote(), "grpo: the learner's reports", limits.call)
        for step, metrics in sorted(reports.items()):
            self.spans.add(step, Span("learner", 0, "learn", metrics["time_began"], metrics["time_ended"]))
            self.spans.close(step)
            self.live.metrics.step(self.record.learned(step, metrics | self.recovery.step_done(step)))
            report(step + 1, self.steps)

    def status(self) -> StageStatus:
        """For `hatch status`."""
        aside = len(self.record.ledger.aside)
        latest, asks = self.record.latest, self.record.asks()
        return StageStatus(self.spans.phase, self.served, self.schedule.next_step, aside, latest, asks)

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
        images = f"{self.maker.processed} images processed, {self.maker.unique} different ones"
        return {"steps": self.steps, "line": f"{self.steps} steps; reward in training: {self.record.rise()}; {images}"}


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
