"""`hatch serve --follow`: the newest model of a run that trains on, taken over while the service answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from hatch_ray.manifest import problem
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems import system_of
from serve.settings import Settings

log = logging.getLogger("hatch_ray.serve")


def newest_model(run: RunFolder, stages: Sequence[str]) -> Path | None:
    """The newest whole model folder of a run, None when it has none. stages: of its system, in order.

    That is the model in the newest good state of a stage after the one that RUN/model points at (GRPO's states have
    one), else RUN/model.
    """
    done = run.model.resolve() if (run.model / "config.json").is_file() else None
    stage = run.model.readlink().parent.name if run.model.is_symlink() else ""
    later = stages[stages.index(stage) + 1 :] if stage in stages else ()
    for stage in reversed(later):
        for state in sorted(run.checkpoints(stage).glob("step-*"), key=lambda path: int(path.name[5:]), reverse=True):
            if (state / "model" / "config.json").is_file() and problem(state) is None:
                return state.resolve() / "model"
    return done


class Follower:
    """Looks every serve.follow_seconds, and hands what is new to `take_over`."""

    def __init__(self, settings: Settings) -> None:
        self.run = RunFolder(settings.run)
        self.stages = [stage.name for stage in system_of(settings.config).stages]
        self.seconds = settings.config.serve.follow_seconds
        self._seen: tuple[Path, int, int] | None = None

    def first(self, settings: Settings) -> Settings:
        """The settings with the newest model, for a replica that starts."""
        folder = newest_model(self.run, self.stages)
        if folder is None:
            return settings
        self._seen = _identity(folder)
        return settings.with_model(folder)

    async def follow(self, served: Callable[[], Settings], take_over: Callable[[Settings], Awaitable[None]]) -> None:
        """`look` again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.seconds)
            await self.look(served(), take_over)

    async def look(self, served: Settings, take_over: Callable[[Settings], Awaitable[None]]) -> None:
        """Hand over the newest model, where it is not the one that is served or was refused before.

        A model that does not fit is logged, and the former one stays.
        """
        try:
            folder = await asyncio.to_thread(newest_model, self.run, self.stages)
            if folder is None or (identity := _identity(folder)) == self._seen:
                return
            settings = await asyncio.to_thread(served.with_model, folder)
            self._seen = identity
            if settings.version != served.version:
                await take_over(settings)
                log.warning("now serving %s from %s", settings.version, folder)
        except (OSError, ValueError, SafetensorError) as error:  # a state may be dropped while it is read
            log.error("%s: the newest model is not taken over, %s stays: %s", self.run.path, served.version, error)


def _identity(folder: Path) -> tuple[Path, int, int]:
    stat = folder.stat()
    return folder, stat.st_ino, stat.st_mtime_ns
