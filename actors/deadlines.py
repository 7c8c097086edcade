"""Every wait has a deadline and a name: a hang becomes one sentence that says which stage did not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

START_SECONDS = 600.0
"""An engine or a learner may load this long."""
CALL_SECONDS = 1800.0
"""The longest that one call may work (a step's rollouts, an update)."""


class StageTimeoutError(RuntimeError):
    """A stage did not answer in its time."""


def wait_for(ref: ray.ObjectRef, stage: str, seconds: float, alive: Callable[[], None] | None = None) -> Any:
    """The value of `ref`; `alive` is called twice a second and may raise what went wrong elsewhere.

    Raises StageTimeoutError naming the stage after `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        ready, _ = ray.wait([ref], timeout=max(0.0, min(0.5, end - time.monotonic())))
        if ready:
            return ray.get(ref, timeout=60)
        if alive is not None:
            alive()
        if time.monotonic() >= end:
            raise StageTimeoutError(f"{stage}: no answer in {seconds:g} s")


def wait_for_all(
    refs: Sequence[ray.ObjectRef], stage: str, seconds: float, alive: Callable[[], None] | None = None
) -> list[Any]:
    """The values of all `refs`, in order, under one deadline."""
    end = time.monotonic() + seconds
    return [wait_for(ref, stage, max(0.0, end - time.monotonic()), alive) for ref in refs]
