"""Short runs of the whole recipe for tests: real stages, a few steps each, on a random-weights model; and faults."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

REPOSITORY = Path(__file__).resolve().parents[2]

SHORT = [
    "model.template=compact-v1", "model.max_pixels=12544", "model.max_length=512",
    "data.samples=24", "data.heldout_samples=12",
    "pasta.max_steps=3", "pasta.batch_size=4", "pasta.save_every=1",
    "qa_sft.max_steps=3", "qa_sft.batch_size=4", "qa_sft.save_every=1",
    "cold_start.max_steps=3", "cold_start.batch_size=4", "cold_start.save_every=1", "cold_start.fraction=0.5",
    "grpo.max_steps=4", "grpo.prompts_per_step=2", "grpo.group_size=4", "grpo.save_every=1",
    "grpo.max_new_tokens=24", "eval.samples=12", "eval.max_new_tokens=24", "eval.bootstrap=200",
]  # fmt: skip
ALONE = ["learner.workers=1", "rollout.actors=1", "reward_actors.actors=1"]
"""One process a role: where many stages start, on two cores a second worker only makes each start longer."""
ROOMS = ["data.rooms.train_scenes=3", "data.rooms.heldout_scenes=3", "data.rooms.views_per_scene=6"]


def start(words: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`hatch ...` in a process group of its own."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "hatch_ray.cli", *words], cwd=REPOSITORY, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=inherited | (environment or {}),
    )  # fmt: skip


def kill_and_go_on(words: list[str], run: Path, step: int) -> str:
    """`hatch WORDS`, its driver killed once GRPO has logged the step, and the same command again: what that printed."""
    process = start(words)
    wait_for_step(process, run, "grpo", step, timeout=240)
    kill(process)
    process = start(words)
    output = finish(process, 240)
    assert process.returncode == 0, output
    return output


def finish(process: subprocess.Popen[str], timeout: float) -> str:
    """Wait; the output. Kills the whole group when the time is over."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        kill(process)
        raise


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 of the whole process group: what a preempted machine looks like. That it had ended is a failure."""
    if process.poll() is not None:
        said = process.stdout.read() if process.stdout else ""
        raise AssertionError(f"it had ended by itself with {process.returncode}:\n{said}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def hatch(*words: str, timeout: float = 300) -> str:
    """Run `hatch ...` to its end; its output. Fails with the output when the exit code is not 0."""
    process = start(list(words))
    output = finish(process, timeout)
    assert process.returncode == 0, output
    return output


def hatch_here(*words: str) -> str:
    """`hatch ...` in this process, on the cluster that is up here: no Ray and no imports of its own. Its output."""
    from hatch_ray.cli import app

    with contextlib.chdir(REPOSITORY):
        done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def metrics(run: Path, stage: str) -> list[dict]:
    """The stage's rows of metrics.jsonl."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["stage"] == stage]


def wait_for_step(process: subprocess.Popen[str], run: Path, stage: str, step: int, timeout: float) -> None:
    """Until the stage has logged this step."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if any(row["step"] >= step for row in metrics(run, stage)):
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    kill(process)
    raise AssertionError(f"{stage} did not reach step {step} in {timeout} s")


def workers_of(process: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """The Ray workers below a driver whose title (ray::Class.method while a method runs) contains these words."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if title in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_worker(process: subprocess.Popen[str], title: str, timeout: float = 60) -> None:
    """kill -9 of the first worker that bears the title, as soon as one does."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := workers_of(process, title):
            found[0].kill()
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.005)
    kill(process)
    raise AssertionError(f"no process of {title} in {timeout} s")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file of a run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


TIMES = ("time", "seconds", "tokens_per_s", "samples_per_s", "processed_per_image", "recoveries", "issued_again")
"""Metrics that tell how long something took or how often it was done, not what came out."""


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs of one config, to the bit: weights, metrics, completions, ledger."""
    found = []
    stages = json.loads((one / "progress.json").read_text())
    assert stages == json.loads((other / "progress.json").read_text()) and stages
    for stage in stages:
        left, right = (load_file(run / stage / "model" / "model.safetensors") for run in (one, other))
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            found.append(f"{stage}: weights")
        rows = [
            [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in metrics(run, stage)]
            for run in (one, other)
        ]
        if [row["step"] for row in rows[0]] != [row["step"] for row in rows[1]]:
            found.append(f"{stage}: steps logged")
        for a, b in zip(*rows, strict=False):
            found += [f"{stage}: {name} at step {a['step']}" for name in a if a[name] != b.get(name)]
    samples = [rows_of(run / "samples" / "grpo.jsonl") for run in (one, other)]
    for rows in samples:
        for row in rows:
            row["images"] = [Path(path).name for path in row["images"]]
    if samples[0] != samples[1]:
        found.append("completions or their rewards")
    if rows_of(one / "ledger.jsonl") != rows_of(other / "ledger.jsonl"):
        found.append("ledger")
    return found


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def reserve_ports(count: int) -> list[int]:
    """Free ports outside 10002-19999, which Ray gives to its workers."""
    found: set[int] = set()
    while len(found) < count:
        port = free_port()
        if not 10000 <= port <= 20000:
            found.add(port)
    return sorted(found)
