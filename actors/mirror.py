"""The driver's thread that pushes a run to its home in a bucket, every few seconds and once at the end."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from rich.console import Console

from hatch_ray.config import Config
from hatch_ray.run_folder import RunFolder, is_bucket
from hatch_ray.storage import Home, StorageError, TakenOverError

LAST_TRIES = 3
LAST_WAIT_SECONDS = 10.0
SAY_SECONDS = 60.0
"""A push that fails again and again is told at most this often."""
log = logging.getLogger("hatch_ray")


def brought_home(config: Config, console: Console) -> tuple[Config, Home | None]:
    """The config with the run's folder in place of its bucket, pulled; unchanged for a run that has no bucket."""
    if not is_bucket(config.run_dir):
        return config, None
    home = Home.of(str(config.run_dir), config.storage.work_dir)
    console.print(f"run folder: {home.folder}, pushed to {home.address}", markup=False)
    home.pull_to_train()
    return config.model_copy(update={"run_dir": home.folder}), home


class Mirror:
    """Pushes while it is open. At its end, also that of a run that fails or is stopped, the rest is pushed.

    Training goes on when a push fails. Raises StorageError at the end when the rest cannot be pushed, or another
    machine has taken the run over.
    """

    def __init__(self, home: Home, seconds: float, console: Console) -> None:
        self.home, self.seconds, self.console = home, seconds, console
        self._status = RunFolder(home.folder).status_path
        self._failed = 0.0
        self._told = 0.0
        self._lost: TakenOverError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hatch-mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self.home.take(self.seconds)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._finish()
        except StorageError as failure:
            if error is None:
                raise
            log.error("%s", failure)

    def _loop(self) -> None:
        while not self._stop.wait(self.seconds) and self._lost is None:
            self._try()

    def _try(self) -> None:
        """One push. A failure is told, and the next push tries again."""
        if not self._status.is_file():
            return  # the training has not begun: a first start that fails leaves nothing behind
        try:
            self.home.push()
        except TakenOverError as error:
            self._lost = error
            log.error("%s", error)
        except (OSError, ValueError) as error:
            now = time.monotonic()
            self._failed = self._failed or now
            if not self._told or now - self._told >= SAY_SECONDS:
                self._told = now
                log.warning("not pushed: %s; training goes on, tried again every %g s", error, self.seconds)
        else:
            if self._failed:
                log.warning("pushed again after %.0f s: %s", time.monotonic() - self._failed, self.home.address)
            self._failed = self._told = 0.0

    def _finish(self) -> None:
        if self._lost is not None:
            raise self._lost
        if not self._status.is_file():
            return
        for attempt in range(1, LAST_TRIES + 1):
            try:
                self.home.push()
            except TakenOverError:
                raise
            except StorageError as error:
                if attempt == LAST_TRIES:
                    raise StorageError(
                        f"the run could not be pushed to the end: {error}. It is whole in {self.home.folder}; the same "
                        "command on this machine pushes what is missing"
                    ) from error
                log.warning("not pushed: %s; tried again in %g s", error, LAST_WAIT_SECONDS)
                time.sleep(LAST_WAIT_SECONDS)
            else:
                self.console.print(f"pushed: {self.home.address}", markup=False)
                return
