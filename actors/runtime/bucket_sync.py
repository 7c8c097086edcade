"""A run's way to its home in a bucket: pulled before it, pushed every few seconds meanwhile and once at its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from rich.console import Console

from hatch_ray.config import Config
from hatch_ray.run_folder import is_bucket
from hatch_ray.storage import STATUS, Home, StorageError, TakenOverError

LAST_TRIES, LAST_WAIT_SECONDS = 3, 10.0
SAY_SECONDS = 60.0
"""A push that fails again and again is told at most this often."""
log = logging.getLogger("hatch_ray")


def brought_home(config: Config, console: Console) -> tuple[Config, Home | None]:
    """The config with the run's folder in place of its bucket, pulled; unchanged for a run that has no bucket."""
    if not is_bucket(config.run_dir):
        return config, None
    home = Home(str(config.run_dir), config.storage.work_dir, every=config.storage.mirror_seconds)
    console.print(f"run folder: {home.folder}, pushed to {home.address}", markup=False)
    home.pull_to_train()
    return config.model_copy(update={"run_dir": home.folder}), home


@contextmanager
def pushed(home: Home, console: Console) -> Iterator[None]:
    """Push while the block runs, and the rest at its end, also of a run that fails or is stopped.

    Training goes on when a push fails. Raises StorageError at the end when the rest cannot be pushed, or another
    machine has taken the run over.
    """
    home.take()
    over, failed = threading.Event(), True
    with ThreadPoolExecutor(1, thread_name_prefix="bucket-sync") as thread:
        pushing = thread.submit(_push, home, over)
        try:
            yield
            failed = False
        finally:
            over.set()
            try:
                pushing.result()
                if (home.folder / STATUS).is_file():  # else a first start has failed before anything was trained
                    console.print(f"pushed: {home.address}", markup=False)
            except StorageError as error:
                if not failed:
                    raise
                log.error("%s", error)


def _push(home: Home, over: threading.Event) -> None:
    """Every few seconds until it is over, then to the end in LAST_TRIES tries."""
    tries, told = LAST_TRIES, 0.0
    while True:
        last = over.wait(home.every)
        try:
            home.push()
        except TakenOverError as error:
            if not last:
                log.error("%s", error)
            raise
        except (OSError, ValueError) as error:
            tries -= last
            if not tries:
                raise StorageError(
                    f"the run could not be pushed to the end: {error}. It is whole in {home.folder}; the same command "
                    "on this machine pushes what is missing"
                ) from error
            if not told or time.monotonic() - told >= SAY_SECONDS:
                told = time.monotonic()
                log.warning("not pushed: %s; training goes on, tried again every %g s", error, home.every)
            time.sleep(LAST_WAIT_SECONDS * last)
        else:
            if told:
                log.warning("pushed again: %s", home.address)
            if last:
                return
            told = 0.0
