"""How long `hatch demo` takes on this machine, said at its start and corrected after each part; where the time went.

A probe of two seconds tells how fast this machine is against the one on which the reference costs were read; the work
of each part is its steps or questions. What a probe cannot know (the engines, the disk, who else is at work) shows in
the first parts that end: the rest is rescaled by what they took over what was foretold. Nothing here imports Ray.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from actors.runtime.progress import ANSWERED
from actors.stages.dry_run import planned_steps
from hatch_ray.config import Config
from hatch_ray.disk import free_bytes
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic

PROCESSOR = "AMD EPYC, 2 cores, without AMX"
"""The machine of all figures below, and what it ran: configs/tiny.yaml."""
PASSES_PER_S = 41.0
"""What `probe` finds there."""
STEP_S = {"pasta": 0.14, "qa_sft": 0.53, "cold_start": 0.55, "grpo": 1.77}
BATCH = {"pasta": 16, "qa_sft": 16, "cold_start": 16, "grpo": 64}
"""Pairs, samples or completions of such a step."""
ANSWER_S = 44 / 2250
"""A held-out question, asked of one model."""
OVERHEAD_S = {"start": 54.0, "pasta": 19.0, "qa_sft": 5.0, "cold_start": 1.5, "grpo": 5.5, "evaluation": 16.0,
              "service": 25.0}  # fmt: skip
"""What is neither a step nor an answer: rooms, Ray, engines, models to disk, intervals, the service, the report."""
MEMORY_GIB = 8.0
"""A demo runs in a container of as much."""
DISK_GIB = 0.5
"""A finished run folder, rooms and checkpoints in it (RUN/timing.json has what it came to)."""

STARTS = "start"
WORKERS = 2
"""Cores that the demo's processes can keep busy: two workers or two engines of one thread each."""
PROBE_SECONDS = 2.0


def models_asked(config: Config) -> int:
    """Base, every stage that changes replies, and the last one again with swapped images (`evaluate.py`)."""
    return 2 + sum(stage != "pasta" for stage in config.stages)


def work(config: Config, done: Sequence[str] = ()) -> dict[str, float]:
    """Seconds of each part on the reference machine, in the order of the demo, without stages that are done."""
    seconds = {STARTS: OVERHEAD_S[STARTS]}
    for stage in (stage for stage in config.stages if stage not in done):
        section = getattr(config, stage)
        batch = config.grpo.prompts_per_step * config.grpo.group_size if stage == "grpo" else section.batch_size
        steps = planned_steps(config, stage) or math.ceil(section.epochs * config.data.samples / batch)
        seconds[stage] = OVERHEAD_S[stage] + steps * STEP_S[stage] * batch / BATCH[stage]
    questions = min(config.eval.samples, config.data.heldout_samples) * models_asked(config)
    return seconds | {"evaluation": OVERHEAD_S["evaluation"] + questions * ANSWER_S, "service": OVERHEAD_S["service"]}


def probe(seconds: float = PROBE_SECONDS) -> float:
    """Passes a second of work like the demo's training: small transformer layers forward and backward, float32, on as
    many cores as the demo can use, each with one thread of its own.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    passes, end = [0] * min(WORKERS, len(os.sched_getaffinity(0))), time.perf_counter() + seconds
    took = [0.0] * len(passes)

    def work_on(place: int) -> None:
        layer = torch.nn.TransformerEncoderLayer(192, 3, 512, dropout=0.0, batch_first=True)
        model, tokens = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(4, 96, 192)
        model(tokens).sum().backward()  # the first pass pays for what all later ones find ready
        start = time.perf_counter()
        while not passes[place] or time.perf_counter() < end:
            model(tokens).sum().backward()
            passes[place] += 1
            took[place] = time.perf_counter() - start

    workers = [threading.Thread(target=work_on, args=(place,)) for place in range(len(passes))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(threads)
    return sum(count / spent for count, spent in zip(passes, took, strict=True))


class Forecast:
    """Seconds that are left, by the parts' foretold seconds and what the ended ones took.

    parts: part -> seconds, in their order.
    """

    def __init__(self, parts: Mapping[str, float]) -> None:
        self.left = dict(parts)
        self.total = sum(parts.values())
        self._foretold = self._took = 0.0

    def ended(self, part: str, seconds: float) -> None:
        """A part took so long; those before it that never ended were not needed."""
        for name in list(self.left):
            foretold = self.left.pop(name)
            if name == part:
                break
        else:
            raise AssertionError(f"{part} is not foretold, or has ended before")
        if part != STARTS:  # a few seconds of rooms and processes say little about training
            self._foretold += foretold
            self._took += seconds

    @property
    def pace(self) -> float:
        """What the ended parts took, over what was foretold for them."""
        return self._took / self._foretold if self._foretold else 1.0

    @property
    def remaining(self) -> float:
        """Seconds to the end."""
        return self.pace * sum(self.left.values())


def step_seconds(times: Sequence[float]) -> float:
    """Seconds of steps that ended at these times. The first one's beginning is not known: it is given the median."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return sum(gaps) + statistics.median(gaps) if gaps else 0.0


def breakdown(rows: Sequence[Mapping[str, Any]], since: float, answering: float, total: float) -> dict[str, Any]:
    """Where `total` seconds went: training steps by stage (rows of metrics.jsonl written after the time `since`),
    answering held-out questions, and everything else.
    """
    times: dict[str, list[float]] = {}
    for row in rows:
        if row["time"] >= since:
            times.setdefault(row["stage"], []).append(row["time"])
    training = {stage: round(step_seconds(ends), 1) for stage, ends in times.items()}
    rest = total - sum(training.values()) - answering
    return {
        "seconds": round(total, 1),
        "training": training,
        "steps": {stage: len(ends) for stage, ends in times.items()},
        "answering": round(answering, 1),
        "everything_else": round(rest, 1),
    }


def minutes(seconds: float) -> str:
    """ "40 s", "3 min": as exactly as a forecast can be."""
    return f"{10 * math.ceil(seconds / 10)} s" if seconds < 95 else f"{seconds / 60:.0f} min"


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
