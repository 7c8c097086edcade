"""What every stage on the learner's workers shares: following progress and notices, starting again, clear errors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from actors.runtime.notices import arrived
from actors.runtime.placement import stage_needs
from actors.runtime.progress import Report
from actors.runtime.recovery import RESTARTABLE, Recovery, lost_part
from actors.runtime.resources import wait_for_nodes
from actors.runtime.stopping import StopAsked, asked
from actors.stages.run_processes import RunProcesses
from actors.stages.train_workers import TrainWorkers
from hatch_ray.config import Config
from hatch_ray.model.memory import workers_used
from hatch_ray.run_folder import RunFolder, Tail, read_jsonl

POLL_SECONDS = 0.3
BACK_SECONDS = 60.0
"""How long a run waits for a lost machine, or another in its place, where deadlines.nodes_seconds is less."""
log = logging.getLogger("hatch_ray")


def fit_stage(
    workers: TrainWorkers,
    loop: Callable[[Any], None],
    job: Any,
    run: RunFolder,
    stage: str,
    count: int,
    steps: int,
    report: Report,
) -> None:
    """Run `loop(job)` on `count` of the run's workers until it ends, calling report(done, steps) on the way.

    Raises what `TrainWorkers.do` raises, and StopAsked when SIGTERM ended it before its last step.
    """
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(run, stage, steps, report, stop), daemon=True)
    follower.start()
    try:
        workers.do(loop, job, count, run)
    finally:
        stop.set()
        follower.join()
    if asked() and last_step(run, stage) < steps:
        raise StopAsked
    report(steps, steps)


def last_step(run: RunFolder, stage: str) -> int:
    """The last step of a stage in metrics.jsonl; 0 where there is none."""
    return max((row["step"] for row in read_jsonl(run.metrics_path) if row["stage"] == stage), default=0)


def fit_supervised(
    processes: RunProcesses | None,
    loop: Callable[[Any], None],
    job: Any,
    config: Config,
    run: RunFolder,
    stage: str,
    steps: int,
    report: Report,
) -> None:
    """`fit_stage` of a stage whose workers go on from their last checkpoint: lost workers are started again.

    processes: the run's; where None, the stage starts its own.
    """
    if processes is None:
        with RunProcesses(config, run) as own:
            return fit_supervised(own, loop, job, config, run, stage, steps, report)
    recovery = Recovery(run, stage, config.recovery)

    def told(done: int, total: int) -> None:
        recovery.step_done(done)
        report(done, total)

    while True:
        began = time.monotonic()
        try:
            return fit_stage(processes.workers, loop, job, run, stage, workers_used(config, stage), steps, told)
        except RESTARTABLE as error:
            recovery.stage_lost(*lost_part(error), time.monotonic() - began, 0)
            before_restart(config, stage, error)


def before_restart(config: Config, stage: str, error: BaseException) -> None:
    """A stage that lost workers starts again where its needs find a place; a lost machine has a while to come back.

    Raises StopAsked when SIGTERM came meanwhile, ConfigError with what is missing when no machine came.
    """
    if asked():
        raise StopAsked from error
    wait_for_nodes(stage_needs(config, stage), max(config.deadlines.nodes_seconds, BACK_SECONDS), print)


def _follow(run: RunFolder, stage: str, steps: int, report: Report, stop: threading.Event) -> None:
    """Tail the metrics file that rank 0 writes and report its last step of the stage; pass on the workers' notices."""
    tail = Tail(run.metrics_path)
    while True:
        last = stop.wait(POLL_SECONDS)
        for line in arrived(run.path):
            log.warning("%s", line)
        if steps_done := [row["step"] for row in tail.rows()[0] if row["stage"] == stage]:
            report(steps_done[-1], steps)
        if last:
            return
