"""What `hatch demo` says of its time: a forecast, what is left after each part, and where the seconds went."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
from rich.console import Console

from actors.commands.forecast import (
    DISK_GIB,
    MEMORY_GIB,
    PASSES_PER_S,
    PROCESSOR,
    STARTS,
    Forecast,
    breakdown,
    minutes,
    probe,
    work,
)
from actors.runtime.progress import ANSWERED
from hatch_ray.config import Config
from hatch_ray.disk import free_bytes
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take on disk; a linked folder is not its own."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


class Timekeeper:
    """Says at the start how long the demo will take, after each part how much is left, at the end where it went."""

    def __init__(self, config: Config, console: Console, began: float | None = None, passes: float = 0.0) -> None:
        """began: when it started (seconds since 1970), else when this process did. passes: what `probe` found, else it
        is asked."""
        self.run, self.console, self.answering = RunFolder(config.run_dir), console, 0.0
        self.began = psutil.Process().create_time() if began is None else began
        self.passes = passes or probe()
        done = [stage for stage, state in self.run.progress().items() if state["done"]]
        reference = work(config, done)
        self.forecast = Forecast({part: seconds * PASSES_PER_S / self.passes for part, seconds in reference.items()})
        self.ends = self.began
        """When the last part ended, and the next began."""
        self.parts: dict[str, float] = {}

    def foretell(self) -> None:
        """Time, memory and disk that the demo takes, and what there is."""
        speed = self.passes / PASSES_PER_S
        parts = ", ".join(f"{part.replace('_', ' ')} {minutes(took)}" for part, took in self.forecast.left.items())
        self.console.print(f"About {minutes(self.forecast.total)} on this machine: {parts}")
        self.console.print(f"  {speed:.2f} times as fast as {PROCESSOR}, in a test of two seconds")
        memory, disk = psutil.virtual_memory().available / 2**30, free_bytes(self.run.path) / 2**30
        self.console.print(
            f"  it takes up to {MEMORY_GIB:g} GiB of memory ({memory:.1f} are free) and {DISK_GIB:g} GiB of disk "
            f"({disk:.1f} are free)"
        )

    def told(self, ended: str, seconds: float) -> None:
        """A stage has ended, or a model has answered (`actors.runtime.progress.Told`)."""
        if ended == ANSWERED:
            self.answering += seconds
            return
        if STARTS in self.forecast.left:
            self._end(STARTS, time.time() - seconds - self.ends)
        self.end(ended)

    def end(self, part: str) -> None:
        """A part has ended, which began where the last one did; one line on what is left."""
        self._end(part, time.time() - self.ends)
        if self.forecast.left:
            self.console.print(
                f"  about {minutes(self.forecast.remaining)} left ({self.forecast.pace:.2f} times as long as foretold)"
            )

    def _end(self, part: str, seconds: float) -> None:
        self.forecast.ended(part, seconds)
        self.parts[part] = round(seconds, 1)
        self.ends += seconds

    def finish(self, memory_gib: float) -> None:
        """Print where the seconds went, and write RUN/timing.json."""
        total, disk = time.time() - self.began, folder_bytes(self.run.path) / 2**30
        found = breakdown(read_jsonl(self.run.metrics_path), self.began, self.answering, total)
        steps = ", ".join(f"{stage.replace('_', ' ')} {took:.0f}" for stage, took in found["training"].items())
        self.console.print(
            f"done in {total / 60:.1f} min ({self.forecast.total / 60:.1f} were foretold), "
            f"{memory_gib:.1f} GiB of memory at most, {disk:.2f} GiB of disk"
        )
        self.console.print(
            f"  seconds: {sum(found['training'].values()):.0f} of training steps ({steps}), "
            f"{self.answering:.0f} answering, {found['everything_else']:.0f} everything else"
        )
        found |= {"parts": self.parts, "foretold": round(self.forecast.total, 1)}
        found |= {"memory_gib": round(memory_gib, 2), "disk_gib": round(disk, 3)}
        machine = {"cores": len(os.sched_getaffinity(0)), "passes_per_s": round(self.passes, 2)}
        write_atomic(self.run.timing_path, json.dumps(found | {"machine": machine}, indent=2))
