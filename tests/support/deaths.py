"""The end of a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray


def kill_and_wait(actor: Any, call: Callable[[], ray.ObjectRef], seconds: float = 60.0) -> None:
    """End an actor, and come back when it is dead."""
    ray.kill(actor)
    wait_for_death(call, seconds)


def wait_for_death(call: Callable[[], ray.ObjectRef], seconds: float = 60.0) -> None:
    """Come back when the actor that `call` calls is dead: a kill takes a moment, and till then calls are answered."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            ray.get(call(), timeout=seconds)
        except ray.exceptions.RayActorError:
            return
        time.sleep(0.01)
    raise AssertionError(f"the actor still answers after {seconds:.0f} s")
