"""Where does every process of a run stand? Each has a file in RUN/stacks/ and dumps its threads into it on SIGUSR1."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_SECONDS = 2.0
"""A process that can run at all has written its stacks by then."""
NODE_SECONDS = 15.0
"""The same for processes of another node, where a task of Ray's must start."""
FRAME = re.compile(r'  File ".*?/((?:actors|hatch_ray|serve|tests)/[^"]+)", line (\d+) in (\w+)')
ALIVE = (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
"""States in which a process can write its stacks."""
WAITING = ("actors/runtime/deadlines.py", "actors/runtime/stack_dumps.py")
"""Frames of the wait itself, which say nothing of what is waited for."""


@dataclass(frozen=True)
class Process:
    """One process of the run; `created` (seconds) tells it from a later one with the same pid."""

    role: str
    node: str
    pid: int
    created: float

    def state(self) -> str:
        """Running, sleeping, stopped, .. or gone. Works on its own node."""
        try:
            process = psutil.Process(self.pid)
            state = str(process.status())
            return "gone" if state == psutil.STATUS_ZOMBIE or process.create_time() != self.created else state
        except psutil.NoSuchProcess:
            return "gone"


class Stacks:
    """This process's file in the folder of all, and `dump` of all of them."""

    def __init__(self, folder: Path, role: str, first: bool = False) -> None:
        """first: drop the files of earlier processes."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        if first:
            for old in folder.glob("*.txt"):
                old.unlink()
        self.node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        pid = os.getpid()
        process = Process(role, self.node, pid, psutil.Process(pid).create_time())
        name = "-".join([role.replace(" ", "-"), *([self.node[:6]] if self.node else []), str(pid)])
        self._file = (folder / f"{name}.txt").open("w", encoding="utf-8")
        # First the handler: whoever reads the file may send the signal, which ends a process that does not handle it.
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True)
        self._file.write(json.dumps(asdict(process)) + "\n")
        self._file.flush()

    def dump(self) -> list[str]:
        """Signal every process of the run, wait for what they write; one line each: role, process, where it stands."""
        found = [(path, read_process(path)) for path in sorted(self.folder.glob("*.txt"))]
        files = [path for path, process in found if process is not None]
        processes = [process for _, process in found if process is not None]
        sizes = [path.stat().st_size for path in files]
        states = self._on_nodes(signal_all, processes)

        def silent() -> list[Process]:
            """Those that could answer and have not."""
            return [
                process
                for path, size, process in zip(files, sizes, processes, strict=True)
                if states[process] in ALIVE and path.stat().st_size == size
            ]

        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end and silent():
            time.sleep(0.05)
        states |= self._on_nodes(states_of, silent())  # one that was being killed was still there at first
        lines = []
        for path, size, process in zip(files, sizes, processes, strict=True):
            with path.open(encoding="utf-8") as file:
                file.seek(size)
                lines.append(f"{process.role} (process {process.pid}): {describe(states[process], file.read())}")
        return lines

    def _on_nodes(
        self, ask: Callable[[Sequence[Process]], dict[Process, str]], processes: Sequence[Process]
    ) -> dict[Process, str]:
        """Their states, asked for on each one's node: on this one directly, on others by a task there."""
        nodes = {process.node for process in processes} - {self.node}
        told = ask([p for p in processes if p.node == self.node])
        asked = {
            node: ray.remote(ask)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote([p for p in processes if p.node == node])
            for node in nodes
        }
        for node, answer in asked.items():
            try:
                told |= ray.get(answer, timeout=NODE_SECONDS)
            except ray.exceptions.RayError as error:
                told |= {p: f"its node does not answer ({type(error).__name__})" for p in processes if p.node == node}
        return told


def read_process(path: Path) -> Process | None:
    """Whose file it is: its first line; None while that is being written."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return Process(**json.loads(line)) if line.endswith("\n") else None


def states_of(processes: Sequence[Process]) -> dict[Process, str]:
    """The states of processes of this node."""
    return {process: process.state() for process in processes}


def signal_all(processes: Sequence[Process]) -> dict[Process, str]:
    """Ask processes of this node for their stacks; their states. One that is gone or does not listen gets no signal."""
    states = states_of(processes)
    for process, state in states.items():
        if state != "gone" and listens(process.pid):
            os.kill(process.pid, signal.SIGUSR1)
    return states


def listens(pid: int) -> bool:
    """Whether the process handles SIGUSR1, which would end it otherwise (Linux: the mask of caught signals)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    mask = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def describe(state: str, dump: str) -> str:
    """Where a process stands: the innermost frame of the project's own code in each thread that has one."""
    if not dump:
        return state if state not in ("running", "sleeping") else f"{state}, did not write its stacks"
    places = []
    for thread in dump.split("\n\n"):
        frames = [match for match in FRAME.finditer(thread) if not match[1].startswith(WAITING)]
        if frames:
            places.append(f"{frames[0][3]} ({frames[0][1]}:{frames[0][2]})")
    return ", ".join(places) if places else "idle"
