"""What a run pays beside its steps: seconds until the first step, between stages, and until the first reply, before and
after a change.

    python -m bench.start                         # 2 rounds of both; about 20 minutes

`hatch demo` with few steps a stage, of this tree and of an older commit (a git worktree, the same environment), in
turn. Both are watched from outside, so the older one needs no change: RUN/metrics.jsonl says when steps ended, titles
of Ray's processes when an engine is asked (`ray::RolloutEngine.generate`), /proc what each process has spent. A
process's last figure is kept when it ends; one that lives for less than a look (0.1 s) is not seen.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.measure import write_results
from hatch_ray.run_folder import read_jsonl

REPOSITORY = Path(__file__).resolve().parent.parent
BEFORE = "ff01234"
LOOK_SECONDS = 0.1
ASKED = "RolloutEngine.generate"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 1800.0


@dataclass
class Seen:
    """What was seen of a run from outside. Times are seconds since 1970.

    looks   (time, CPU seconds of all its processes so far).
    asked   (time, process): an engine bore the title of being asked.
    """

    began: float
    looks: list[tuple[float, float]] = field(default_factory=list)
    asked: list[tuple[float, int]] = field(default_factory=list)
    ended: float = 0.0

    def cpu_until(self, moment: float) -> float:
        """CPU seconds spent from the command until then."""
        times, spent = zip(*self.looks, strict=True)
        return float(np.interp(moment, times, spent))


class Family:
    """The processes of a command: all that descend from it, also those whose parent has ended since."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.spent: dict[tuple[int, int], float] = {}
        """(pid, start of the process in ticks) -> CPU seconds, as last seen."""
        self.living: set[int] = set()

    def look(self, table: Mapping[int, tuple[int, int, float]]) -> float:
        """CPU seconds of the family, ended members included. table: pid -> (parent, start, CPU seconds)."""
        members = {pid for pid in table if pid == self.root or (pid, table[pid][1]) in self.spent}
        while more := {pid for pid, (parent, _, _) in table.items() if parent in members and pid not in members}:
            members |= more
        for pid in members:
            self.spent[pid, table[pid][1]] = table[pid][2]
        self.living = members
        return sum(self.spent.values())


def processes() -> dict[int, tuple[int, int, float]]:
    """Every process of this machine: pid -> (parent, start in ticks, CPU seconds of its own)."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (line := read(f"/proc/{name}/stat")):
            fields = line.rpartition(b")")[2].split()
            found[int(name)] = (int(fields[1]), int(fields[19]), (int(fields[11]) + int(fields[12])) / TICKS)
    return found


def read(path: str) -> bytes:
    """The beginning of a file of /proc, empty when its process has ended. Plain calls: there are many, and the run that
    is watched has the same cores."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(file, 4096)
    except OSError:
        return b""
    finally:
        os.close(file)


def title(pid: int) -> str:
    """A process's command line, which Ray turns into what a worker does; empty when it has ended."""
    return read(f"/proc/{pid}/cmdline").decode(errors="replace")


def watch(tree: Path, config: Path, run: Path) -> Seen:
    """Run `hatch demo` of a tree to its end, and look at it all the while. Raises RuntimeError when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(tree)}
    log = run.with_suffix(".log")
    words = [sys.executable, "-m", "hatch_ray.cli", "demo", "--run-dir", str(run), "--config", str(config)]
    with log.open("wb") as output:
        seen = Seen(time.time(), [(time.time(), 0.0)])
        process = subprocess.Popen(
            words, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        family = Family(process.pid)
        try:
            while process.poll() is None:
                now = time.time()
                seen.looks.append((now, family.look(processes())))
                seen.asked += [(now, pid) for pid in family.living if ASKED in title(pid)]
                if now - seen.began > PATIENCE_S:
                    raise RuntimeError(f"hatch demo of {tree} took more than {PATIENCE_S:.0f} s")
                time.sleep(LOOK_SECONDS)
        finally:
            if process.poll() is None:
                for pid in family.living:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    seen.ended = time.time()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"hatch demo of {tree} ended with {process.returncode}:\n{tail}")
    return seen


def step_times(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Stage -> when its first step began and its last one ended. A step is logged when it ends: the first one is taken
    to have lasted as long as the median of the others, so that what it took longer counts as start.
    """
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        ends = [row["time"] for row in rows if row["stage"] == stage]
        if ends:
            gaps = [later - earlier for earlier, later in pairwise(ends)]
            found[stage] = (ends[0] - (statistics.median(gaps) if gaps else 0.0), ends[-1])
    return found


def first_reply(asked: Sequence[tuple[float, int]], after: float, answered: float) -> float:
    """When the first engine that was asked after a moment had replied: its title's last look in a row. `answered`, when
    the first model's replies were all there, where no title was seen.
    """
    later = [(when, pid) for when, pid in asked if after < when <= answered]
    if not later:
        return answered
    first = later[0][1]
    looks = sorted({when for when, _ in later})
    last = later[0][0]
    for when in looks:
        if (when, first) not in later:
            break
        last = when
    return min(last + LOOK_SECONDS, answered)


def spans(seen: Seen, rows: Sequence[Mapping[str, Any]], answered: float) -> dict[str, dict[str, float]]:
    """Name -> wall and CPU seconds of each stretch without a step. answered: when the first model's replies were
    written."""
    steps = step_times(rows)
    stages = list(steps)
    ends: dict[str, tuple[float, float]] = {
        f"command to the first step of {stage}": (seen.began, steps[stage][0]) for stage in stages
    }
    for earlier, later in pairwise(stages):
        ends[f"last step of {earlier} to the first of {later}"] = (steps[earlier][1], steps[later][0])
    last = steps[stages[-1]][1]
    ends["last step to the first reply of the evaluation"] = (last, first_reply(seen.asked, last, answered))
    ends["the whole command"] = (seen.began, seen.ended)
    return {
        name: {
            "wall_s": round(end - start, 2),
            "cpu_s": round(seen.cpu_until(end) - (seen.cpu_until(start) if start > seen.began else 0.0), 2),
        }
        for name, (start, end) in ends.items()
    }


def settings(tree: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The demo's own config as a tree has it, with few steps a stage and few questions."""
    config = yaml.safe_load((tree / "configs" / "tiny.yaml").read_text(encoding="utf-8"))
    for stage in ("pasta", "qa_sft", "cold_start", "grpo"):
        config[stage]["max_steps"] = options.steps
    config["eval"]["samples"] = options.questions
    if options.samples:
        config["data"] |= {"samples": options.samples}
    return config


def measure(tree: Path, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One run of a tree below a new folder: its spans."""
    folder.mkdir()
    config, run = folder / "config.yaml", folder / "run"
    config.write_text(yaml.safe_dump(settings(tree, options)), encoding="utf-8")
    seen = watch(tree, config, run)
    written = [path.stat().st_mtime for path in (run / "eval").glob("*.json") if (path.with_suffix(".jsonl")).exists()]
    return spans(seen, read_jsonl(run / "metrics.jsonl"), min(written))


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A commit's tree in a folder that is no longer there afterwards. Raises ValueError when git has no such commit."""
    made = subprocess.run(
        ["git", "worktree", "add", "--detach", str(folder), commit], cwd=REPOSITORY, capture_output=True, text=True
    )
    if made.returncode:
        raise ValueError(f"--before {commit}: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=REPOSITORY, check=True)


def medians(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each span, over the rounds of one tree."""
    return {
        name: {part: round(statistics.median(one[name][part] for one in rounds), 2) for part in ("wall_s", "cpu_s")}
        for name in rounds[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with; none: this tree alone")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="of each stage")
    parser.add_argument("--questions", type=int, default=24, help="of the evaluation")
    parser.add_argument("--samples", type=int, default=0, help="training samples; 0: as many as in the demo")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hatch-start-") as name:
        folder = Path(name)
        found: dict[str, list[dict[str, dict[str, float]]]] = {}

        def turn(way: str, tree: Path) -> None:
            found.setdefault(way, []).append(one := measure(tree, folder / f"{way}{len(found.get(way, []))}", options))
            print(f"{way}:", *(f"  {span}: {took}" for span, took in one.items()), sep="\n", flush=True)

        if options.before == "none":
            for _ in range(options.rounds):
                turn("after", REPOSITORY)
        else:
            with checked_out(options.before, folder / "tree") as tree:
                for _ in range(options.rounds):
                    turn("before", tree)
                    turn("after", REPOSITORY)
    command = {key: value for key, value in vars(options).items() if key != "out"}
    results = {"command": command, "spans": {way: medians(rounds) for way, rounds in found.items()}, "rounds": found}
    print(f"written: {write_results('start', results, options.out)}")


if __name__ == "__main__":
    main()
