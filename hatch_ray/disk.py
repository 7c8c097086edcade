"""Writing to disk. A full one pauses a run: what could not be written is taken back and tried again."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

RETRY_SECONDS = 5.0
SAY_SECONDS = 60.0
"""The pause is told at most this often in one process, however many files wait."""

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = tuple(f"(os error {number})" for number in FULL)
"""How safetensors and tokenizers, which are written in Rust, name the same errors."""
TORCH_TEXT = "PytorchStreamWriter failed writing file"
"""All that torch.save says when a write fails."""
SCARCE = 64 * 2**20
"""torch.save's failure is taken for a full disk when fewer bytes than this are free."""

Result = TypeVar("Result")
log = logging.getLogger("hatch_ray.disk")
_told: dict[str, float] = {}
_lock = threading.Lock()


def is_full(error: BaseException, path: Path) -> bool:
    """Whether a write below `path` failed because the disk, or the user's quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in FULL
    text = str(error)
    return any(full in text for full in FULL_TEXTS) or (TORCH_TEXT in text and free_bytes(path) < SCARCE)


def free_bytes(path: Path) -> int:
    """Bytes that may still be written where `path` lies or will lie."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def when_there_is_room(path: Path, write: Callable[[], Result]) -> Result:
    """`write()`; while the disk is full it is called again every few seconds, and the user is told once a minute.

    `write` must take back what it had written before it raises. Anything but a full disk is raised.
    """
    began: float | None = None
    while True:
        try:
            result = write()
        except Exception as error:
            if not is_full(error, path):
                raise
            began = began or time.monotonic()
            _tell(path, error)
            time.sleep(RETRY_SECONDS)
            continue
        if began is not None:
            log.warning("%s is written; the run goes on after a pause of %.0f s", path, time.monotonic() - began)
        return result


def _tell(path: Path, error: BaseException) -> None:
    with _lock:
        now = time.monotonic()
        if now - _told.get("pause", -SAY_SECONDS) < SAY_SECONDS:
            return
        _told["pause"] = now
    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT
    log.warning(
        "%s: %s could not be written, %.1f MB are free there. The run pauses and goes on by itself when you have made "
        "room; to stop it instead press Ctrl-C, it resumes from its last checkpoint",
        "the disk quota is used up" if quota else "the disk is full", path, free_bytes(path) / 1e6,
    )  # fmt: skip


def replace_folder(new: Path, target: Path) -> None:
    """Rename folder `new` to `target`; an old target is moved aside first and then removed (see `clear_leftovers`)."""
    aside = target.with_name(f".{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
    os.replace(new, target)
    if aside.exists():
        shutil.rmtree(aside)


def clear_leftovers(run: Path) -> None:
    """Of a run that nobody drives: what processes left in its folders that were killed while they wrote.

    A folder that `replace_folder` had moved aside goes back where no new one has taken its place. Other such folders
    (.NAME.old), and temporary ones (.NAME.PID), are removed.
    """
    for left in [path for path in (*run.glob("*/.*"), *run.glob("*/checkpoints/.*")) if path.is_dir()]:
        name, _, end = left.name[1:].rpartition(".")
        if end == "old" and not left.with_name(name).exists():
            os.replace(left, left.with_name(name))
        elif end == "old" or end.isdecimal():
            shutil.rmtree(left)
