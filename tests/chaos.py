"""`make chaos`: short runs on several Ray nodes that lose processes at random, beside one that loses none.

For each seed a run loses, in an order and at moments drawn from the seed: a rollout actor, a reward actor, a learner
worker, the driver (started again as a user would), and a whole Ray node. It must end by itself, and alike: ledger,
completions, rewards, losses and weights equal those of the undisturbed run to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hatch_ray.environment import prepare_environment

prepare_environment()
SCRATCH = Path(tempfile.mkdtemp(prefix="hatch-", dir="/tmp"))
(SCRATCH / "token").write_text(secrets.token_hex(32), encoding="utf-8")
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(SCRATCH / "token"))
os.environ.pop("RAY_ADDRESS", None)

import psutil  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.support.runs import ROOMS, SHORT, differences, kill, metrics, rows_of, start, wait_for_step  # noqa: E402
from tests.support.taught import TASKS, teach  # noqa: E402

FAULTS = ("rollout engine", "reward actor", "learner worker", "driver", "node")
TITLES = {
    "rollout engine": "ray::RolloutEngine",
    "reward actor": "ray::Verifier",
    "learner worker": "ray::RayTrainWorker",
}
STEPS = 14
RECOVERY_SECONDS = 240
MEBIBYTE = 2**20


def words(run: Path, model: Path) -> list[str]:
    """The command: roles small enough for two nodes of one CPU each."""
    return [
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={model}", *SHORT, *ROOMS,
        f"data.tasks=[{','.join(TASKS)}]", f"grpo.max_steps={STEPS}", "grpo.save_every=3", "grpo.lr=5e-4",
        "learner.workers=2", "learner.cpus=0.4",
        "rollout.actors=2", "rollout.cpus=0.4", "rollout.kv_cache_mb=64", "reward_actors.actors=1",
        "reward_actors.cpus=0.1",
    ]  # fmt: skip


class Nodes:
    """Ray nodes of one CPU each on this machine: real raylets, each of which can be killed with all its workers."""

    def __init__(self, count: int) -> None:
        head = {"num_cpus": 1, "object_store_memory": 256 * MEBIBYTE, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | {"temp_dir": str(SCRATCH / "ray")})
        for _ in range(count - 1):
            self.add()
        self.address = self.cluster.address

    def add(self) -> None:
        """One node more."""
        self.cluster.add_node(num_cpus=1, object_store_memory=256 * MEBIBYTE)

    def kill_one(self) -> int:
        """kill -9 of a node that holds roles of the run and not its driver's boards; the number of roles it had."""
        loads: dict[int, int] = {}
        for title in (*TITLES.values(), "ray::ExperienceBoard"):
            for worker in workers(title):
                sign = -100 if title == "ray::ExperienceBoard" else 1
                loads[worker.ppid()] = loads.get(worker.ppid(), 0) + sign
        victims = [node for node in self.cluster.worker_nodes if loads.get(raylet(node), 0) > 0]
        if not victims:
            return 0
        victim = max(victims, key=lambda node: loads[raylet(node)])
        roles = loads[raylet(victim)]
        self.cluster.remove_node(victim, allow_graceful=False)
        return roles


def raylet(node: Any) -> int:
    """The process of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def workers(title: str) -> list[psutil.Process]:
    """Workers of this chaos' cluster that bear the title."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if title in line and any(str(SCRATCH) in " ".join(parent.cmdline()) for parent in process.parents()[:1]):
            found.append(process)
    return found


def strike(fault: str, process: subprocess.Popen[str], nodes: Nodes, chance: random.Random) -> bool:
    """Bring the fault about; whether there was something to hit."""
    if fault == "driver":
        kill(process)
        return True
    if fault == "node":
        return nodes.kill_one() > 0
    found = workers(TITLES[fault])
    if found:
        chance.choice(found).kill()
    return bool(found)


def run_through(seed: int, run: Path, model: Path, nodes: Nodes, say: Any) -> list[dict[str, Any]]:
    """A run with all faults; what each cost. Raises AssertionError when it does not end by itself."""
    chance = random.Random(seed)
    order = list(FAULTS)
    chance.shuffle(order)
    steps = sorted(chance.sample(range(1, STEPS - 2), len(order)))
    environment = {"RAY_ADDRESS": nodes.address}
    process = start(words(run, model), environment)
    log = drain(process, run)
    told: list[dict[str, Any]] = []
    for fault, step in zip(order, steps, strict=True):
        wait_for_step(process, run, "grpo", step, timeout=400)
        time.sleep(chance.uniform(0, 0.4))
        before, began = len(rows_of(run / "recoveries.jsonl")), time.monotonic()
        assert strike(fault, process, nodes, chance), f"no {fault} to kill"
        if fault == "node":
            nodes.add()  # a machine that is taken back is replaced
        if fault == "driver":
            process = start(words(run, model), environment)
            log = drain(process, run)
        end = time.monotonic() + RECOVERY_SECONDS
        reached = max(row["step"] for row in metrics(run, "grpo"))
        while not recovered(run, fault, before, reached):
            assert process.poll() is None, f"the run ended after the {fault} died:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"no recovery of the {fault} in {RECOVERY_SECONDS} s"
            time.sleep(0.1)
        rows = rows_of(run / "recoveries.jsonl")[before:]
        told.append({
            "seed": seed, "fault": fault, "after step": step, "seconds": time.monotonic() - began,
            "issued_again": sum(row["issued_again"] for row in rows), "lines": len(rows),
        })  # fmt: skip
        say(f"  seed {seed}: {fault} died after step {step}: {told[-1]['seconds']:.1f} s until the next step")
    assert process.wait(timeout=600) == 0, log.read_text()[-3000:]
    return told


def drain(process: subprocess.Popen[str], run: Path) -> Path:
    """Keep a process' output in a file, so that it never waits for a reader."""
    import threading

    path = run.parent / f"{run.name}.log"

    def copy() -> None:
        assert process.stdout is not None
        with path.open("a", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()

    threading.Thread(target=copy, daemon=True).start()
    return path


def recovered(run: Path, fault: str, before: int, reached: int) -> bool:
    """The loss is told (the driver's is not: it is started again), and the run has gone beyond where it was."""
    told = fault == "driver" or len(rows_of(run / "recoveries.jsonl")) > before
    return told and max((row["step"] for row in metrics(run, "grpo")), default=0) > reached


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", default=str(secrets.randbelow(10**6)), help="by commas; default: one at random")
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    from tools.tiny import make_tiny

    console = Console()
    out = options.out or SCRATCH / "runs"
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"seeds {options.seeds}; runs in {out}", markup=False)
    model = teach(make_tiny(SCRATCH / "tiny", 0), SCRATCH / "taught")
    nodes = Nodes(3)
    began = time.monotonic()
    failed = False
    told: list[dict[str, Any]] = []
    try:
        process = start(words(out / "undisturbed", model), {"RAY_ADDRESS": nodes.address})
        log = drain(process, out / "undisturbed")
        assert process.wait(timeout=900) == 0, log.read_text()[-3000:]
        console.print(f"undisturbed run: {time.monotonic() - began:.0f} s")
        for seed in map(int, options.seeds.split(",")):
            run = out / f"seed{seed}"
            told += run_through(seed, run, model, nodes, console.print)
            found = differences(out / "undisturbed", run)
            failed = failed or bool(found)
            console.print(f"  seed {seed}: {'equal to the bit' if not found else 'DIFFERS: ' + '; '.join(found[:5])}")
    finally:
        nodes.cluster.shutdown()
    table = Table(title="Faults", title_justify="left")
    for name in ("seed", "fault", "after step", "seconds", "issued_again", "lines"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in told:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    console.print(json.dumps({"faults": len(told), "survived": len(told), "seconds": time.monotonic() - began}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
