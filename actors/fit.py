"""What every Ray Train stage shares: starting the workers, following progress and notices, clear errors."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError

from actors.notices import arrived, relay_to_driver
from actors.placement import learner_resources, stage_needs
from actors.progress import Report
from actors.recovery import RESTARTABLE, Recovery, WorkerDiedError, lost_part
from actors.resources import wait_for_nodes
from actors.stopping import StopAsked, asked
from hatch_ray.config import Config
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic

POLL_SECONDS = 0.3
BACK_SECONDS = 60.0
"""How long a run waits for a lost machine, or another in its place, where deadlines.nodes_seconds is less."""
log = logging.getLogger("hatch_ray")


def stage_workers(config: Config, batch_size: int) -> int:
    """How many of the learner's workers a stage uses: the most that share its batch evenly.

    The paper trains PaStA and SFT with a batch of 1, so on one worker, while GRPO uses all of them.
    """
    return math.gcd(batch_size, config.learner.workers)


def fit_stage(
    loop: Callable[[dict[str, Any]], None],
    job: Any,
    config: Config,
    run: RunFolder,
    stage: str,
    workers: int,
    steps: int,
    report: Report,
) -> None:
    """Run `loop({"job": reference to job})` on Ray Train workers until it ends, calling report(done, steps) on the way.

    An exception that a worker raised comes out as itself; ValueError and FloatingPointError carry one clear line.
    Raises WorkerDiedError when a worker was lost, and StopAsked when SIGTERM ended it before its last step.
    """
    gpus = config.learner.gpus
    trainer = TorchTrainer(
        partial(work, loop, run),
        train_loop_config={"job": ray.put(job)},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker=learner_resources(config),
            placement_strategy=config.learner.together,
        ),
        torch_config=TorchConfig("nccl" if gpus else "gloo", timeout_s=math.ceil(config.deadlines.call_seconds)),
        run_config=RunConfig(name=stage, storage_path=str(run.path / ".ray_train")),
    )  # fmt: skip
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(run, stage, steps, report, stop), daemon=True)
    follower.start()
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise first_failure(error) from error
    except PreemptionError as error:
        raise WorkerDiedError(f"its machine was taken back: {error}") from error
    except TrainingFailedError as error:
        raise RuntimeError(f"{stage}: Ray Train could not run the stage: {error}") from error
    finally:
        stop.set()
        follower.join()
        shutil.rmtree(run.path / ".ray_train", ignore_errors=True)
    if asked() and last_step(run, stage) < steps:
        raise StopAsked
    report(steps, steps)


def last_step(run: RunFolder, stage: str) -> int:
    """The last step of a stage in metrics.jsonl; 0 where there is none."""
    return max((row["step"] for row in read_jsonl(run.metrics_path) if row["stage"] == stage), default=0)


def work(loop: Callable[[dict[str, Any]], None], run: RunFolder, settings: dict[str, Any]) -> None:
    """`loop(settings)` in a worker, whose lines for the user reach the driver."""
    relay_to_driver(run.path)
    loop(settings)


def fit_supervised(
    loop: Callable[[dict[str, Any]], None],
    job: Any,
    config: Config,
    run: RunFolder,
    stage: str,
    workers: int,
    steps: int,
    report: Report,
) -> None:
    """`fit_stage` of a stage whose workers go on from their last checkpoint: lost workers are started again."""
    recovery = Recovery(run, stage, config.recovery)

    def told(done: int, total: int) -> None:
        recovery.step_done(done)
        report(done, total)

    while True:
        began = time.monotonic()
        try:
            return fit_stage(loop, job, config, run, stage, workers, steps, told)
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


LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection refused")
"""What gloo and NCCL say on the ranks that outlive another."""


def first_failure(error: WorkerGroupError) -> BaseException:
    """What went wrong: what a rank raised, lowest first (itself when its message is for users, else with traceback),
    unless a worker was lost and the others only say so.
    """
    failures = dict(sorted(error.worker_failures.items()))
    # Ray hands the worker's exception over inside one whose text is the traceback; it offers no public way to it.
    raised = {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}
    for one in raised.values():
        if isinstance(one, (ValueError, FloatingPointError)):
            return one
    dead = [rank for rank, one in raised.items() if isinstance(one, WorkerHealthCheckFailedError)]
    orphans = [rank for rank, one in raised.items() if rank not in dead and LOST_PEER.search(str(one))]
    if dead or orphans == list(raised):
        ranks = ", ".join(map(str, dead)) if dead else f"not {orphans[0]}, which lost its connection"
        return WorkerDiedError(f"rank {ranks}")
    return next(failure for rank, failure in failures.items() if rank not in orphans)


def _follow(run: RunFolder, stage: str, steps: int, report: Report, stop: threading.Event) -> None:
    """Tail the metrics file that rank 0 writes and report its last step of the stage; pass on the workers' notices."""
    position, known = 0, -1
    while True:
        last = stop.wait(POLL_SECONDS)
        for line in arrived(run.path):
            log.warning("%s", line)
        if run.metrics_path.exists():
            with run.metrics_path.open("rb") as file:
                if (number := os.fstat(file.fileno()).st_ino) != known:
                    position, known = 0, number  # `forget_after` put another file in its place
                file.seek(position)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            position += len(whole)
            rows = [row for row in map(json.loads, whole.splitlines()) if row["stage"] == stage]
            if rows:
                report(rows[-1]["step"], steps)
        if last:
            return


def check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    """Raise FloatingPointError naming the stage, the step and what to change when a value is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{stage}: {name} is {value} at step {step}; lower {stage}.lr, or raise {stage}.warmup_steps. "
                "The run goes on from its last checkpoint when started again"
            )


def forget_after(run: RunFolder, stage: str, step: int) -> None:
    """Drop a stage's metrics beyond `step`: a resumed stage takes those steps again."""
    rows = read_jsonl(run.metrics_path)
    kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
    if len(kept) < len(rows):
        write_atomic(run.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
