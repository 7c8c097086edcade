"""The learner's workers of a run: one group of Ray Train workers that takes up stage after stage.

A worker imports torch, transformers and Ray Train once (`python -m bench.imports`) for all stages that it serves. A
stage that uses another number of workers than the one before gets a group of its own.

    driver: TrainWorkers.do(loop, job) -> Desk -> every worker: loop(job) -> Desk -> driver
"""

from __future__ import annotations

import gc
import math
import re
import shutil
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

# Ray Train, and torch with it, is imported where it is used: the driver starts Ray's processes before.
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.experience.queues import Desk
from actors.runtime.deadlines import limits, wait_for
from actors.runtime.notices import relay_to_driver
from actors.runtime.placement import learner_resources
from actors.runtime.recovery import WorkerDiedError
from hatch_ray.config import Config
from hatch_ray.run_folder import RunFolder

LOOK_SECONDS = 0.2
END_SECONDS = 60.0
"""How long a group that is no longer needed may take to end."""


class TrainWorkers:
    """As a context: its group, where there is one, ends with the block."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self._group: _Group | None = None

    def __enter__(self) -> TrainWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, count: int) -> None:
        """Let a group of `count` workers start, in place of another one; the caller goes on."""
        if self._group is not None and self._group.is_alive() and self._group.count == count:
            return
        self.end()
        self._group = _Group(self.config, self.run, count)

    def do(self, loop: Callable[[Any], None], job: Any, count: int, run: RunFolder) -> None:
        """Run `loop(job)` on `count` workers until all of them have returned; their lines for the user go to `run`.

        An exception that a worker raised comes out as itself; ValueError and FloatingPointError carry one clear line.
        Raises WorkerDiedError when a worker was lost. After any of these the next call starts a new group.
        """
        self.start(count)
        group = self._group
        assert group is not None
        try:
            group.do(loop, job, run)
        except BaseException as error:
            if self._group is group:
                self._group = None
            group.leave(END_SECONDS if isinstance(error, Exception) else 0.0)
            raise

    def abandon(self) -> None:
        """Let go of a group that is at work and does not come back: the next call starts a new one."""
        group, self._group = self._group, None
        if group is not None:
            group.leave(0.0)

    def end(self) -> None:
        """End the workers, and free their resources. They must not be at work."""
        group, self._group = self._group, None
        if group is not None:
            group.end()


class _Group(threading.Thread):
    """Ray Train's blocking `fit` in a thread, and the desk where its workers ask for work."""

    def __init__(self, config: Config, run: RunFolder, count: int) -> None:
        super().__init__(name="train-workers", daemon=True)
        self.config, self.folder, self.count = config, run, count
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Calls that wait must not keep others out.
        options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
        self._desk = ray.remote(Desk).options(**options).remote(count)
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The group's life, from the start of the workers to their end."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError

        config = self.config
        storage = self.folder.path / ".ray_train"
        trainer = TorchTrainer(
            serve,
            train_loop_config={"desk": self._desk},
            scaling_config=ScalingConfig(
                num_workers=self.count, use_gpu=config.learner.gpus > 0,
                resources_per_worker=learner_resources(config), placement_strategy=config.learner.together,
            ),
            torch_config=TorchConfig(
                "nccl" if config.learner.gpus else "gloo", timeout_s=math.ceil(config.deadlines.call_seconds)
            ),
            run_config=RunConfig(name="learner", storage_path=str(storage)),
        )  # fmt: skip
        try:
            trainer.fit()
        except WorkerGroupError as error:
            self._error = first_failure(error)
            self._error.__cause__ = error
        except PreemptionError as error:
            self._error = WorkerDiedError(f"its machine was taken back: {error}")
        except TrainingFailedError as error:
            self._error = RuntimeError(f"Ray Train could not run the learner's workers: {error}")
        except BaseException as error:  # noqa: BLE001 - raised where the work is waited for
            self._error = error
        finally:
            shutil.rmtree(storage, ignore_errors=True)

    def do(self, loop: Callable[[Any], None], job: Any, run: RunFolder) -> None:
        """Hand out one piece of work and wait for it."""
        work = ray.put((run.path, loop, job))
        number = wait_for(self._desk.give.remote([work]), "handing work to the learner", limits.call, self._check)
        done = self._desk.finished.remote(number)
        while not ray.wait([done], timeout=LOOK_SECONDS)[0]:
            self._check()
        ray.get(done, timeout=60)

    def _check(self) -> None:
        """Raise what the group ended with, if it has ended."""
        if not self.is_alive():
            raise self._error or WorkerDiedError("its group has ended")

    def leave(self, seconds: float) -> None:
        """Let go of a group whose work has failed, or whose driver has; wait so long for its end."""
        ray.kill(self._desk)  # workers that come there end with an error, which nobody needs
        self.join(seconds)

    def end(self) -> None:
        """Send the workers home and wait until they are gone."""
        if self.is_alive():
            wait_for(self._desk.close.remote(), "sending the learner's workers home", 60)
            self.join(END_SECONDS)
        ray.kill(self._desk)


def serve(settings: dict[str, Any]) -> None:
    """What every worker of a group runs: one piece of work after the other, until the desk is closed."""
    from ray.train import get_context

    rank = get_context().get_world_rank()
    number = 0
    while (work := ray.get(settings["desk"].next.remote(number))) is not None:
        run, loop, job = ray.get(work[0])
        relay_to_driver(run)  # lines for the user reach the driver
        loop(job)
        del work, loop, job
        gc.collect()  # models lie in circles of modules and hooks: two stages' must not be in memory at once
        ray.get(settings["desk"].done.remote(number, rank))
        number += 1


LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection refused")
"""What gloo and NCCL say on the ranks that outlive another."""


def first_failure(error: Any) -> BaseException:
    """What went wrong in Ray Train's WorkerGroupError: what a rank raised, lowest first (itself when its message is for
    users, else with traceback), unless a worker was lost and the others only say so.
    """
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

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
