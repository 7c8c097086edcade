"""Where does every process of a run stand? Each has a file in RUN/stacks/ and dumps its threads into it on SIGUSR1."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_SECONDS = 2.0
"""A process that can run at all has written its stacks by then."""
NODE_SECONDS = 15.0
"""The same for processes of another node, where a task of Ray's must start."""
FRAME = re.compile(r'  File ".*(?<!/tests)/((?:tests/)?(?:actors|hatch_ray|serve|tests)/[^"]+)", line (\d+) in (\w+)')
"""A frame of ours, from the last folder on that is one of ours: the house may lie in one of the same name."""
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
        for old in folder.glob("*.txt") if first else ():
            old.unlink()
        self.node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        process = Process(role, self.node, os.getpid(), psutil.Process().create_time())
        name = "-".join(filter(None, [role.replace(" ", "-"), self.node[:6], str(process.pid)]))
        self._file = (folder / f"{name}.txt").open("w", encoding="utf-8")
        # First the handler: whoever reads the file may send the signal, which ends a process that does not handle it.
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True)
        self._file.write(json.dumps(asdict(process)) + "\n")
        self._file.flush()

    def dump(self) -> list[str]:
        """Signal every process of the run, wait for what they write; one line each: role, process, where it stands."""
        found = {process: path for path in sorted(self.folder.glob("*.txt")) if (process := read_process(path))}
        sizes = {process: path.stat().st_size for process, path in found.items()}
        states = self._on_nodes(signal_all, found)

        def silent() -> list[Process]:
            """Those that could answer and have not."""
            return [one for one in found if states[one] in ALIVE and found[one].stat().st_size == sizes[one]]

        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end and silent():
            time.sleep(0.05)
        states |= self._on_nodes(states_of, silent())  # one that was being killed was still there at first
        return [
            f"{one.role} (process {one.pid}): {describe(states[one], path.read_bytes()[sizes[one] :].decode())}"
            for one, path in found.items()
        ]

    def _on_nodes(
        self, ask: Callable[[Sequence[Process]], dict[Process, str]], processes: Iterable[Process]
    ) -> dict[Process, str]:
        """Their states, asked for on each one's node: on this one directly, on others by a task there."""
        of: dict[str, list[Process]] = {}
        for process in processes:
            of.setdefault(process.node, []).append(process)
        told = ask(of.pop(self.node, []))
        asked = {
            node: ray.remote(ask)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(there)
            for node, there in of.items()
        }
        for node, answer in asked.items():
            try:
                told |= ray.get(answer, timeout=NODE_SECONDS)
            except ray.exceptions.RayError as error:
                told |= dict.fromkeys(of[node], f"its node does not answer ({type(error).__name__})")
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
    own = ((frame for frame in FRAME.finditer(thread) if not frame[1].startswith(WAITING))
           for thread in dump.split("\n\n"))  # fmt: skip
    places = [f"{frame[3]} ({frame[1]}:{frame[2]})" for frames in own if (frame := next(frames, None))]
    return ", ".join(places) if places else "idle"
