"""What died, what it cost, and when to stop: one line, one row of RUN/recoveries.jsonl and one metric a recovery."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import ray

from actors.runtime.actor_set import DEATHS, SOURCE_LOST, Loss, reason_of
from hatch_ray.config_sections import RecoveryConfig
from hatch_ray.run_folder import RunFolder, append_jsonl

RAISED = re.compile(r"(?!MemoryError|OutOfMemory)[\w.]*(?:Error|Exception)\b")
"""A reason that is an exception of code, not the end of a process."""


class WorkerDiedError(RuntimeError):
    """A learner worker was lost: killed, out of memory, or with its machine."""


RESTARTABLE = (
    WorkerDiedError,
    *DEATHS,
    *SOURCE_LOST,
    ray.exceptions.ActorUnschedulableError,  # a colocated engine whose node is gone
)
"""What a stage that starts again from its last checkpoint gets over: a process or its memory is gone."""


def lost_part(error: Exception) -> tuple[str, str]:
    """What a stage has lost, and the reason in a few words (Ray's own are a dozen lines)."""
    if isinstance(error, WorkerDiedError):
        return "learner worker", str(error)
    if isinstance(error, SOURCE_LOST):
        holder = "node" if isinstance(error, ray.exceptions.ObjectLostError) else "process"
        return "object", f"its {holder} died"
    name = re.search(r"class_name: (\w+)", str(error))
    return name[1] if name else "actor", reason_of(error)


class Recovery:
    """The losses of one stage. `say` prints a line; losses in a row without a finished step end the run."""

    def __init__(
        self, run: RunFolder, stage: str, settings: RecoveryConfig, say: Callable[[str], None] = print
    ) -> None:
        self.path = run.recoveries
        self.stage, self.settings, self.say = stage, settings, say
        self.in_a_row = 0
        self._furthest = -1
        self._since: list[dict[str, Any]] = []

    def actor_lost(self, loss: Loss) -> None:
        """A pool has replaced an actor."""
        self._record(loss.role, loss.reason, loss.seconds, loss.items, "replaced")

    def stage_lost(self, what: str, reason: str, seconds: float, groups: int) -> None:
        """The stage starts again from a checkpoint; `seconds` of work and `groups` are done again."""
        self._record(what, reason, seconds, groups, "back to the last checkpoint")

    def set_aside(self, sample: str, reason: str, aside: int, samples: int) -> None:
        """A sample is left out of the rest of the run; `aside` of `samples` now are.

        Raises RuntimeError when these are more than recovery.aside_share.
        """
        self.say(f"{self.stage}: sample {sample} is set aside: {reason}")
        if aside > self.settings.aside_share * samples:
            raise RuntimeError(
                f"{self.stage}: {aside} of {samples} samples are set aside, more than "
                f"recovery.aside_share={self.settings.aside_share:g}; the last: {sample} ({reason}). RUN/ledger.jsonl "
                "names them all: if they fail for one reason, fix that; if they are bad data, leave them out"
            )

    def step_done(self, step: int) -> dict[str, float]:
        """A step was learned: what was lost since the step before, as metrics. Only new ground ends a row of losses."""
        if step > self._furthest:
            self._furthest, self.in_a_row = step, 0
        lost, self._since = self._since, []
        if not lost:
            return {}
        return {
            "recoveries": float(len(lost)),
            "seconds_lost": sum(row["seconds"] for row in lost),
            "issued_again": float(sum(row["issued_again"] for row in lost)),
        }

    def _record(self, what: str, reason: str, seconds: float, again: int, remedy: str) -> None:
        row = {"stage": self.stage, "time": round(time.time(), 3), "what": what, "reason": reason}
        row |= {"seconds": round(seconds, 3), "issued_again": again, "remedy": remedy}
        append_jsonl(self.path, [row])
        self._since.append(row)
        self.in_a_row += 1
        self.say(f"{self.stage}: {what} lost ({reason}): {remedy}, {again} issued again, {seconds:.1f} s lost")
        if self.in_a_row > self.settings.in_a_row and RAISED.match(reason):
            raise RuntimeError(
                f"{self.stage}: {what} failed {self.in_a_row} times without a finished step between them, the last "
                f"with {reason!r}: an error of the data or of hatch-ray, not of the machine; {self.path} has them all"
            )
        if self.in_a_row > self.settings.in_a_row:
            raise RuntimeError(
                f"{self.stage}: {self.in_a_row} processes were lost without a finished step between them, the last: "
                f"{what} ({reason}). Look at memory (fewer rollout.actors or learner.workers, a smaller "
                "rollout.kv_cache_mb or grpo.token_budget) and at the machine's log; raise recovery.in_a_row if the "
                "machines are meant to be that short-lived"
            )
