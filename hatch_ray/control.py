"""A live run from outside: what it says of itself, and what is asked of it, as files of its folder.

Files pass everywhere: to a run in a Ray job, to one of another machine, from any shell that sees the folder.

RUN/status.json            the driver's heartbeat, every second at most
RUN/control/<id>.json      what is asked; the driver takes it by renaming it to <id>.taken
RUN/control/<id>.answer    what became of it
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from hatch_ray.run_folder import RunFolder, write_atomic

STALE_SECONDS = 15.0
"""A heartbeat older than this needs a second look."""
WATCH_SECONDS = 4.0
"""How long the second look lasts: clocks of two machines may differ, so what counts is whether the file changes."""
TAKE_SECONDS = 60.0
"""A live run takes up what is asked within this time (its driver looks twice a second)."""


class NotLiveError(ValueError):
    """No process drives the run."""


def whoami() -> dict[str, Any]:
    """The process that drives the run."""
    return {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": socket.gethostname()}


def read_status(run: RunFolder) -> dict[str, Any] | None:
    """The last heartbeat, None where there never was one."""
    if not run.status_path.is_file():
        return None
    found: dict[str, Any] = json.loads(run.status_path.read_text(encoding="utf-8"))
    return found


def not_live(run: RunFolder, status: dict[str, Any] | None, stale: float = STALE_SECONDS) -> str | None:
    """Why nobody drives the run any more, in words; None while somebody does. May take WATCH_SECONDS.

    stale: a heartbeat older than so many seconds needs a second look.
    """
    if status is None:
        return f"no run was ever started in {run.path}"
    age = time.time() - status["time"]
    who = f"process {status['pid']} on {status['host']}, last heard of {words_of(age)} ago"
    if status["state"] != "running":
        return f"the run is not live: it {status['state']} ({who})"
    if driver_is_gone(status):
        return f"the run is not live: its driver is gone ({who})"
    end = time.monotonic() + WATCH_SECONDS
    while age > stale:
        if (read_status(run) or status)["beat"] != status["beat"]:
            return None
        if time.monotonic() >= end:
            return f"the run is not live: its driver does not write ({who})"
        time.sleep(0.2)
    return None


def driver_is_gone(status: dict[str, Any]) -> bool:
    """Whether the driver was a process of this machine that is no more."""
    if status["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(status["pid"]).create_time() - status["created"]) >= 1
    except psutil.NoSuchProcess:
        return True


def words_of(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{seconds % 60} s"]
    return " ".join([part for part in parts if part][:2])


# --- what is asked ----------------------------------------------------------------------------------------------


def ask(run: RunFolder, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Ask the run's driver, and wait for its answer: {"ok": bool, "lines": [what happened]}.

    Raises NotLiveError when there is no driver, TimeoutError when it does not answer in `seconds`.
    """
    if why := not_live(run, read_status(run)):
        raise NotLiveError(why)
    path = run.control / f"{time.time_ns()}-{os.getpid()}.json"
    write_atomic(path, json.dumps(request))
    answer, start = path.with_suffix(".answer"), time.monotonic()
    while not answer.is_file():
        waited = time.monotonic() - start
        if waited > TAKE_SECONDS and _withdrawn(path):
            raise NotLiveError(not_live(run, read_status(run)) or "the run's driver does not take up what is asked")
        if waited > seconds:
            raise TimeoutError(f"no answer in {seconds:.0f} s; `hatch status {run.path}` shows what became of it")
        time.sleep(0.2)
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink()
    return found


def _withdrawn(path: Path) -> bool:
    """Take a request back, unless the driver has it."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def take(run: RunFolder) -> list[tuple[Path, dict[str, Any]]]:
    """The driver's side: what was asked since, in order, each with the file that its answer belongs to."""
    taken = []
    for path in sorted(run.control.glob("*.json")):
        mine = path.with_suffix(".taken")
        try:
            os.replace(path, mine)
        except FileNotFoundError:  # withdrawn
            continue
        taken.append((path.with_suffix(".answer"), json.loads(mine.read_text(encoding="utf-8"))))
        mine.unlink()
    return taken


def answer(path: Path, ok: bool, lines: list[str]) -> None:
    """Say what became of what was asked."""
    write_atomic(path, json.dumps({"ok": ok, "lines": lines}))


def clear(run: RunFolder) -> None:
    """Drop what was asked of an earlier driver, and answers that nobody waits for."""
    for path in run.control.glob("*"):
        path.unlink(missing_ok=True)


def parse_scale(words: list[str]) -> dict[str, int | None]:
    """["reward=16", "rollout=4"] -> {"reward": 16, "rollout": 4}; "reward=auto" -> None."""
    wanted: dict[str, int | None] = {}
    for word in words:
        role, equals, number = word.partition("=")
        if role not in ("reward", "rollout") or not equals:
            raise ValueError(f"{word!r} is not ROLE=NUMBER with the role reward or rollout (reward=16, rollout=4)")
        if number == "auto" and role == "reward":
            wanted[role] = None
        elif number.isdecimal() and int(number) > 0:
            wanted[role] = int(number)
        else:
            more = " or auto (by queue, between reward_actors.min and max)" if role == "reward" else ""
            raise ValueError(f"{word!r}: the number of actors is a whole number from 1{more}")
    return wanted
