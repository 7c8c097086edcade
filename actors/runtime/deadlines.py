"""Every wait has a deadline and a name: a hang becomes one message that says which stage did not answer, and who is
where.

Each process of a run calls `enter_process` once. On SIGUSR1 it then writes the stacks of its threads to a file in
RUN/stacks/. The process whose deadline expires signals all of them, and its error says where each one stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from actors.runtime.stack_dumps import Stacks
from hatch_ray.config import Config
from hatch_ray.run_folder import RunFolder


class StageTimeoutError(RuntimeError):
    """A stage did not answer in its time. The message says who waits for what."""


class CollectiveError(RuntimeError):
    """A collective of the learner's workers failed: one of them is gone, or did not come in its time."""


@dataclass
class Limits:
    """The deadlines of this process, seconds: `start` for what must start, `call` for one call or collective, `join`
    for what must start on a machine that is still to come.
    """

    start: float = 600.0
    call: float = 1800.0
    join: float = 600.0
    stacks: Stacks | None = None
    boards: tuple[Any, ...] = ()


limits = Limits()
"""Set by `enter_process`; a process that never called it has the defaults and writes no stacks."""


def enter_process(role: str, config: Config, boards: Sequence[Any] = (), first: bool = False) -> None:
    """Take over the config's deadlines, and write this process's stacks to RUN/stacks/ when asked.

    A run folder that does not exist is not made: nothing is written then. boards: actors with a method `waiting`, to
    ask when a deadline expires; first: drop the stacks of earlier processes (the driver's part).
    """
    limits.start, limits.call = config.deadlines.start_seconds, config.deadlines.call_seconds
    limits.join = config.deadlines.join_seconds
    limits.boards = tuple(boards)
    folder = RunFolder(config.run_dir).path
    if folder.is_dir():
        limits.stacks = Stacks(folder / "stacks", role, first)


def expired(waited_for: str, seconds: float) -> StageTimeoutError:
    """The error of a deadline that has expired, with what every process waits for."""
    return StageTimeoutError(f"{waited_for}: no answer in {seconds:g} s.{who_is_where()}")


def who_is_where() -> str:
    """Let all processes of the run write their stacks; where each stands, one line each. Takes seconds."""
    lines = [line for board in limits.boards for line in _ask_board(board)]
    if limits.stacks is not None:
        lines += limits.stacks.dump()
        lines.append(f"all stacks: {limits.stacks.folder}")
    return "".join(f"\n  {line}" for line in lines)


def _ask_board(board: Any) -> list[str]:
    try:
        return list(ray.get(board.waiting.remote(), timeout=5))
    except ray.exceptions.RayError as error:
        return [f"a board does not answer ({type(error).__name__})"]


COLLECTIVE_WORDS = ("gloo", "Timed out waiting", "Connection closed by peer", "Connection reset by peer", "NCCL")


@contextmanager
def collectives(stage: str, rank: int) -> Iterator[None]:
    """Around work with collectives: what gloo or NCCL raises becomes a CollectiveError with stage and rank."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(word in text for word in COLLECTIVE_WORDS):
            raise
        reason = "a worker is gone" if "Connection" in text else "a worker did not come"
        raise CollectiveError(
            f"{stage}, rank {rank}: {reason}; the collective failed after {time.monotonic() - start:.0f} s "
            f"({text.splitlines()[0]}).{who_is_where()}"
        ) from error


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
            raise expired(stage, seconds)


def wait_for_all(
    refs: Sequence[ray.ObjectRef], stage: str, seconds: float, alive: Callable[[], None] | None = None
) -> list[Any]:
    """The values of all `refs`, in order, under one deadline."""
    end = time.monotonic() + seconds
    return [wait_for(ref, stage, max(0.0, end - time.monotonic()), alive) for ref in refs]
