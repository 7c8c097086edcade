"""Resumable states of a stage: whole or absent, verified before they are used, written beside the training.

RUN/<stage>/checkpoints/step-000050/               a state; what lies in it is the stage's own
RUN/<stage>/checkpoints/step-000050/manifest.json  every other file with its bytes and XXH3; step, version, score
RUN/<stage>/checkpoints/bad-step-000100/           one that did not agree with its manifest, set aside
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

from hatch_ray import __version__
from hatch_ray.config_sections import CheckpointsConfig
from hatch_ray.disk import replace_folder, when_there_is_room
from hatch_ray.manifest import MANIFEST, contents, problem, read_manifest, remember
from hatch_ray.run_folder import write_atomic

log = logging.getLogger("hatch_ray.checkpoints")


class Checkpoints:
    """The states step-000050/ of one stage; `keep` says which stay when a new one is written."""

    def __init__(self, folder: Path, keep: CheckpointsConfig | None = None) -> None:
        self.folder = folder
        self.keep = keep or CheckpointsConfig()

    def latest(self) -> Path | None:
        """The newest good state, or None. Bad ones are set aside as bad-step-..., with a line for each.

        The files of a state are read once in each process.
        """
        bad: list[tuple[Path, str]] = []
        found = None
        for path in reversed(self.all()):
            reason = problem(path)
            if reason is None:
                found = path
                break
            bad.append((path, reason))
        follows = f"the stage goes on from {found.name}" if found else "no other is left, so the stage starts again"
        for path, reason in bad:
            aside = _set_aside(path)
            if aside is not None:
                log.warning("checkpoint %s: %s; it is now called %s, and %s", path, reason, aside.name, follows)
        return found

    def all(self) -> list[Path]:
        """Every state, good or not, oldest first."""
        return sorted(self.folder.glob("step-*"), key=self.step)

    @staticmethod
    def step(path: Path) -> int:
        """The optimizer steps that a state has behind it."""
        return int(path.name.removeprefix("step-"))

    def write(self, step: int, write: Callable[[Path], None], score: float | None = None) -> None:
        """Let `write(folder)` fill a folder, which then takes its place as the state of `step`.

        score: larger is better (checkpoints.keep_best). Waits while the disk is full; `write` is then called again.
        """
        temporary = self.folder / f".writing.{os.getpid()}"

        def attempt() -> None:
            for unfinished in self.folder.glob(".writing.*"):  # a killed process's too: a stage has one writer
                shutil.rmtree(unfinished)
            temporary.mkdir(parents=True)
            try:
                write(temporary)
            except BaseException:
                shutil.rmtree(temporary)
                raise

        when_there_is_room(temporary, attempt)
        self.adopt(temporary, step, score)

    def adopt(self, written: Path, step: int, score: float | None = None) -> None:
        """Make a folder that is completely written the state of `step`, then drop those that need not stay."""
        files = {name: {"bytes": size, "xxh3": digest} for name, (size, digest) in contents(written).items()}
        manifest = {"step": step, "hatch_ray": __version__, "score": score, "files": files}
        write_atomic(written / MANIFEST, json.dumps(manifest, indent=1))
        target = self.folder / f"step-{step:06d}"
        when_there_is_room(target, lambda: replace_folder(written, target))
        remember(target)
        stay = self._to_keep()
        for old in self.all():
            if old not in stay:
                shutil.rmtree(old)

    def _to_keep(self) -> set[Path]:
        paths = self.all()
        stay = set(paths[-self.keep.keep_last :])
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        if self.keep.keep_best and scores:
            stay.add(max(scores, key=lambda path: (scores[path], self.step(path))))
        return stay


def _set_aside(path: Path) -> Path | None:
    """Rename a bad state; None when another process of the stage has done so."""
    target, number = path.with_name(f"bad-{path.name}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"bad-{path.name}-{number}")
    try:
        os.rename(path, target)
    except FileNotFoundError:
        return None
    return target


def _score(path: Path) -> float | None:
    """A state's score; None where it has none or cannot be read."""
    try:
        score = read_manifest(path)["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


class Together(Protocol):
    """Workers that write one state together."""

    first: bool

    def wait(self) -> None:
        """Until all of them have come here."""


class CheckpointWriter:
    """Writes states in a thread, one at a time, while the training goes on.

    What a write failed with is raised by the next call, or by `close`. As a context manager it closes at the end.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def save(self, step: int, take: Callable[[], Callable[[Path], None]], score: float | None = None) -> None:
        """Wait for the write before, let `take()` copy the state in memory, and write it with what that returned."""
        self.wait()
        write = take()
        self._last = self._thread.submit(self.checkpoints.write, step, write, score)

    def save_together(
        self, step: int, write: Callable[[Path], None], workers: Together, score: float | None = None
    ) -> None:
        """Let each worker `write` its part into one folder, which rank 0 makes the state of `step` in the thread; all
        workers call it. While the disk is full they wait together."""
        self.wait()
        folder = self.checkpoints.folder / f".writing.{step}"
        if workers.first:
            for unfinished in self.checkpoints.folder.glob(".writing.*"):
                shutil.rmtree(unfinished)
            folder.mkdir(parents=True)
        workers.wait()
        when_there_is_room(folder, lambda: write(folder))
        if workers.first:
            self._last = self._thread.submit(self.checkpoints.adopt, folder, step, score)

    def wait(self) -> None:
        """Until the last state is written. Raises what that failed with."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """`wait`, then end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failure:  # noqa: BLE001 - told with the error that ends the block
            error.add_note(f"and the last checkpoint could not be written: {failure}")
