"""Whether a change of the code changed a result: an older commit and this tree train the same small runs, to the bit.

    python tools/same_results.py --before COMMIT --renamed OLD=NEW      # 10 to 15 minutes on two cores

Each trains configs/tiny.yaml in small, through all stages, with two seeds; and with the first seed once more, the
driver killed in the middle of GRPO and the same command given again. Compared are every metric of RUN/metrics.jsonl but
times, speeds and what counts losses, and the XXH3 of every weight of each stage's model; between the trees, and between
the killed run and the one that was left alone. The exit code is 1 where something differs. What this tree has more is
printed, and no difference.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import deserialize

REPOSITORY = Path(__file__).resolve().parent.parent
BEFORE = "66816b5"
SEEDS, SIDES = (0, 1), ("before", "after")
SMALL = [
    "data.samples=48", "data.heldout_samples=8", "data.rooms.train_scenes=6", "data.rooms.heldout_scenes=2",
    "pasta.max_steps=4", "pasta.batch_size=4", "pasta.save_every=2",
    "qa_sft.max_steps=4", "qa_sft.batch_size=4", "qa_sft.save_every=2",
    "cold_start.max_steps=40", "cold_start.batch_size=8", "cold_start.fraction=1", "cold_start.lr=1e-3",
    "grpo.max_steps=6", "grpo.prompts_per_step=4", "grpo.group_size=4", "grpo.save_every=2", "grpo.max_new_tokens=64",
]  # fmt: skip
KILLED_AT, PATIENCE_S = 3, 600.0
"""The step of GRPO after which the driver is killed (its last checkpoint is of the step before); seconds for a run."""
NOT_COMPARED = ("time", "seconds", "tokens_per_s", "samples_per_s", "processed_per_image", "recoveries", "issued_again")
"""So begin metrics that tell how long or how often something was done, not what came out."""


@dataclass
class Row:
    """What the comparison of one stage of two runs came to. trained: weights that it changed (of the first all)."""

    runs: str
    stage: str
    metrics: int
    weights: int
    trained: int
    differences: list[str]
    added: list[str]


def train(tree: Path, run: Path, seed: int, killed: bool = False) -> None:
    """`hatch train` of a tree to its end; killed: the driver dies once, and the command is given again.

    Raises RuntimeError when the command fails, takes longer than PATIENCE_S or ends before it could be killed.
    """
    words = ["train", str(tree / "configs" / "tiny.yaml"), f"run_dir={run}", f"seed={seed}", *SMALL]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(tree)}
    log, end, due = run.with_suffix(".log"), time.monotonic() + PATIENCE_S, False
    run.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hatch_ray.cli", *words],
            cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None and time.monotonic() < end and not due:
            due = killed and any(row["stage"] == "grpo" and row["step"] >= KILLED_AT for row in rows_of(run))
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if due and process.returncode == -signal.SIGKILL:
        return train(tree, run, seed)
    if killed or process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"hatch {' '.join(words)} in {tree} ended with {process.returncode}:\n{tail}")


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics; a line that is still written is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def metrics_of(run: Path, renamed: Mapping[str, str]) -> dict[str, dict[str, dict[int, Any]]]:
    """Stage -> metric, by its new name -> step -> value."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for row in rows_of(run):
        stage = found.setdefault(row["stage"], {})
        for name, value in row.items():
            if name not in ("stage", "step") and not name.startswith(NOT_COMPARED):
                stage.setdefault(renamed.get(name, name), {})[row["step"]] = value
    return found


def weights_of(run: Path, stage: str) -> dict[str, str]:
    """Name -> type, shape and XXH3 of the bytes; empty where the stage has no model."""
    path = run / stage / "model" / "model.safetensors"
    tensors = deserialize(path.read_bytes()) if path.exists() else []
    return {name: f"{one['dtype']}{one['shape']} {xxhash.xxh3_64_hexdigest(one['data'])}" for name, one in tensors}


def differences(left: Mapping[str, Any], right: Mapping[str, Any], sides: tuple[str, str]) -> Iterator[str]:
    """What `left` has and `right` lacks or has otherwise, by name; of values by step the first step that differs."""
    for name, value in left.items():
        other = right.get(name)
        if other is None:
            yield f"{name}: {sides[0]} only"
        elif value != other and isinstance(value, dict):
            first, then = ({**dict.fromkeys(value | other, "nothing"), **side} for side in (value, other))
            step = min(step for step in first if first[step] != then[step])
            yield f"{name} at step {step}: {first[step]} {sides[0]}, {then[step]} {sides[1]}"
        elif value != other:
            yield f"{name}: {value} {sides[0]}, {other} {sides[1]}"


def compare(
    runs: str, left: Path, right: Path, renamed: Mapping[str, str], sides: tuple[str, str] = SIDES
) -> list[Row]:
    """A row for each stage that either run has. renamed: names of metrics of the left one -> of the right one."""
    metrics, metrics_right, rows = metrics_of(left, renamed), metrics_of(right, {}), []
    former: dict[str, str] = {}
    for stage in dict.fromkeys([*metrics, *metrics_right]):
        ours, theirs = metrics.get(stage, {}), metrics_right.get(stage, {})
        weights, weights_right = weights_of(left, stage), weights_of(right, stage)
        files = [{"model.safetensors": "there"} if found else {} for found in (weights, weights_right)]
        pairs = [(ours, theirs), (weights, weights_right) if all(files) else files]
        found = [text for one, other in pairs for text in differences(one, other, sides)]
        added = [f"{name}: {sides[1]} only" for one, other in pairs for name in other if name not in one]
        trained = sum(former.get(name) != digest for name, digest in weights.items())
        if weights and not trained:
            found.append("no weight was trained, so that nothing is shown")
        both = len(ours.keys() & theirs), len(weights.keys() & weights_right)
        rows.append(Row(runs, stage, *both, trained, found, added))
        former = weights
    return rows


def table(rows: Sequence[Row]) -> str:
    """Of Markdown; below it what the right sides have more."""
    lines = ["| runs | stage | metrics | weights | trained | |", "|---|---|---|---|---|---|"]
    for row in rows:
        more = f" (and {len(row.differences) - 1} more)" if len(row.differences) > 1 else ""
        says = f"DIFFERS: {row.differences[0]}{more}" if row.differences else "equal to the bit"
        lines.append(f"| {row.runs} | {row.stage} | {row.metrics} | {row.weights} | {row.trained} | {says} |")
    return "\n".join([*lines, *dict.fromkeys(f"{row.stage}: {text}" for row in rows for text in row.added)])


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A commit's tree in a folder, until the block ends. Raises ValueError when git has no such commit."""
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    made = subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, text=True)
    if made.returncode:
        raise ValueError(f"--before {commit}: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW", help="a metric (repeatable)")
    options = parser.parse_args()
    renamed = dict(pair.split("=", 1) for pair in options.renamed)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="hatch-same-") as name,
        checked_out(options.before, Path(name, "tree")) as old,
    ):
        runs = Path(name)
        for side, tree in zip(SIDES, (old, REPOSITORY), strict=True):
            for run, seed in [*((f"seed-{seed}", seed) for seed in SEEDS), ("killed", SEEDS[0])]:
                began = time.monotonic()
                train(tree, runs / side / run, seed, killed=run == "killed")
                print(f"{side}, {run}: {time.monotonic() - began:.0f} s", flush=True)
            alone = runs / side / f"seed-{SEEDS[0]}"
            rows += compare(f"{side}, killed", alone, runs / side / "killed", {}, ("left alone", "killed"))
        for seed in SEEDS:
            rows += compare(f"seed {seed}", runs / SIDES[0] / f"seed-{seed}", runs / SIDES[1] / f"seed-{seed}", renamed)
    print(table(rows))
    return int(any(row.differences for row in rows))


if __name__ == "__main__":
    sys.exit(main())
