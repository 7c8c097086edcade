"""SIGTERM (`ray job stop`, `kubectl delete`, a service manager) ends a run in order: its stage saves where it is.

The driver notes the wish in a file of the run folder, which the workers look at after every step: the training workers
of the supervised stages agree on the step at which they save and return. GRPO's driver gives its learner no further
step, and the learner saves. Then the driver raises `StopAsked`, and all actors end with it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hatch_ray.run_folder import RunFolder, write_atomic

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports for a process that SIGTERM ended."""


class StopAsked(Exception):
    """The run was asked to stop and has saved what it is to go on from."""


_asked, _at_work = threading.Event(), threading.Event()
"""Whether the driver was asked to stop, and whether a stage is at work that will save."""


@contextmanager
def stoppable(run: RunFolder) -> Iterator[None]:
    """While the block runs, SIGTERM raises StopAsked in it: at once between stages, and else when the stage has saved.

    A second SIGTERM does not wait. Call it in the main thread, after `ray.init`, which has a handler of its own; in
    another thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    run.stop_path.unlink(missing_ok=True)
    _asked.clear()

    def note(_: int, frame: FrameType | None) -> None:
        if _asked.is_set() or not _at_work.is_set():
            raise StopAsked
        _asked.set()
        write_atomic(run.stop_path, "")

    former = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
        _asked.clear()
        run.stop_path.unlink(missing_ok=True)


@contextmanager
def stage_at_work() -> Iterator[None]:
    """Around a stage that looks at `asked` and saves."""
    _at_work.set()
    try:
        yield
    finally:
        _at_work.clear()


def asked() -> bool:
    """Whether the driver was asked to stop."""
    return _asked.is_set()


def workers_stop(run: RunFolder, device: Any) -> bool:
    """Whether the workers of a supervised stage are to save and return: one answer for all that ask at a step.

    device: the worker's torch.device. (torch is imported here: the driver's command line does without.)
    """
    import torch
    from torch import distributed

    wish = torch.tensor(float(run.stop_path.exists()), device=device)
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(wish)
    return wish.item() > 0
