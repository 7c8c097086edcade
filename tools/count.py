"""Lines of hatch_ray/, actors/ and serve/ by purpose: python tools/count.py [--at COMMIT]."""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hatch_ray", "actors", "serve")
MOST, MOST_CORE = 22_000, 10_000

CORE = ("GRPO, stages, losses, rewards, protocol, geometry, models", "hatch-tiny", "fault tolerance", "command line")
"""The core: what GRPO, the stages, the mathematics, the models, fault tolerance and the command line need."""

PURPOSES = {
    "hatch-tiny": "hatch_ray/model/*tiny*.py hatch_ray/model/pretrain*.py",
    "SPAR": "hatch_ray/data/spar/*.py",
    "posed scenes, matching": """
        hatch_ray/data/scenes/*.py hatch_ray/systems/matching/*.py hatch_ray/geometry/lens.py actors/commands/pool.py
        serve/match.py""",
    "viewpoint": "hatch_ray/systems/viewpoint/*.py",
    "rooms, questions, RGB-D, store": "hatch_ray/data/*.py",
    "fault tolerance": """
        actors/*bad_batches.py actors/*checkpoints.py actors/*deadlines.py actors/*disk*.py actors/*ledger.py
        actors/*parity.py actors/*recovery.py actors/*replay.py actors/*stacks.py actors/*stack_dumps.py
        actors/*stopping.py actors/*worker_logs.py hatch_ray/disk.py hatch_ray/manifest.py hatch_ray/learning/health.py
        hatch_ray/learning/trainer_state.py hatch_ray/rewards/check.py""",
    "bucket": "hatch_ray/bucket*.py hatch_ray/storage*.py actors/*mirror.py actors/*bucket_sync.py",
    "placement, status, scaling, metrics, trace": """
        actors/*live.py actors/*status.py actors/*metrics.py actors/*notices.py actors/*placement.py
        actors/*resources.py actors/*scaling.py actors/*spans.py hatch_ray/cluster_address.py hatch_ray/control.py
        hatch_ray/report/status.py hatch_ray/report/trace.py hatch_ray/sinks.py""",
    "planning, memory": """
        hatch_ray/planning/*.py hatch_ray/model/activations.py hatch_ray/model/memory.py hatch_ray/model/shapes.py
        hatch_ray/model/size.py actors/*memory_check.py""",
    "ablation": "hatch_ray/ablation/*.py actors/*ablate.py",
    "benchmarks": "hatch_ray/benchmarks/*.py actors/*benchmark.py",
    "evaluation, report": "hatch_ray/evaluation/*.py hatch_ray/report/*.py actors/*evaluate.py",
    "serve: requests and HTTP": """
        serve/api/*.py serve/app.py serve/ask.py serve/chat.py serve/client.py serve/examples.py serve/forms.py
        serve/guard.py serve/limits.py serve/openapi.py serve/pages.py serve/routes.py serve/schema.py
        serve/stream.py""",
    "serve: the rest": "serve/*.py",
    "command line": """
        actors/commands/*.py actors/*demo.py actors/*forecast.py actors/*timekeeper.py hatch_ray/__init__.py
        hatch_ray/cli*.py hatch_ray/config*.py hatch_ray/doctor.py hatch_ray/environment.py hatch_ray/run_folder.py
        hatch_ray/run_version.py hatch_ray/system_errors.py hatch_ray/torchvision_mend.py""",
    "GRPO, stages, losses, rewards, protocol, geometry, models": """
        hatch_ray/geometry/*.py hatch_ray/learning/*.py hatch_ray/model/*.py hatch_ray/protocol/*.py
        hatch_ray/rewards/*.py hatch_ray/systems/*.py hatch_ray/sample.py actors/__init__.py actors/stages/*.py
        actors/rollout/*.py actors/reward/*.py actors/experience/*.py actors/weights/*.py actors/learner/*.py
        actors/runtime/__init__.py actors/runtime/*pool*.py actors/boards.py actors/crew.py actors/engines.py
        actors/experience.py actors/fit.py actors/grpo_*.py actors/learner*.py actors/messages.py
        actors/microbatches.py actors/pasta_stage.py actors/plan.py actors/pools.py
        actors/prompts.py actors/recipe.py actors/reward.py actors/rollout.py actors/run_processes.py
        actors/*actor_*.py actors/*progress.py actors/*messages.py actors/collect.py actors/probe_scores.py
        actors/sft_stage.py actors/supervised.py actors/train_workers.py actors/weights.py""",
}
"""Purpose -> patterns of paths, * across folders. A file has the first purpose that fits; earlier layouts fit too."""


def purpose(path: str) -> str | None:
    """What a file is for; None where no pattern fits."""
    fitting = (name for name, patterns in PURPOSES.items() if any(fnmatch(path, one) for one in patterns.split()))
    return next(fitting, None)


def lines_here(root: Path) -> dict[str, int]:
    """Lines of every file of the packages in a working tree, by path."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_bytes().count(b"\n") for path in paths}


def lines_at(root: Path, commit: str) -> dict[str, int]:
    """The same of a commit. SystemExit where git doesn't know it."""
    packed = subprocess.run(["git", "archive", commit, *PACKAGES], cwd=root, capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"--at {commit}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        files = {one.name: archive.extractfile(one) for one in archive if one.isfile() and one.name.endswith(".py")}
        return {name: file.read().count(b"\n") for name, file in files.items() if file}


def table(lines: Mapping[str, int]) -> str:
    """Files and lines by purpose, the core and all. SystemExit naming files that have no purpose."""
    of = {path: purpose(path) for path in lines}
    if homeless := [path for path, name in of.items() if name is None]:
        raise SystemExit(f"no purpose: {', '.join(homeless)}; add them to PURPOSES in tools/count.py")
    rows = []
    for name in PURPOSES:
        if counts := [lines[path] for path, found in of.items() if found == name]:
            rows.append((f"* {name}" if name in CORE else f"  {name}", len(counts), sum(counts)))
    core = [count for path, count in lines.items() if of[path] in CORE]
    rows.append((f"* core, at most {MOST_CORE:,}", len(core), sum(core)))
    rows.append((f"  all, at most {MOST:,}", len(lines), sum(lines.values())))
    heading = f"{'  purpose (*: core)':<62}{'files':>6}{'lines':>8}"
    return "\n".join([heading, *(f"{name:<62}{files:>6}{count:>8,}" for name, files, count in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", metavar="COMMIT", help="count this commit instead of the files here")
    commit = parser.parse_args().at
    print(table(lines_at(ROOT, commit) if commit else lines_here(ROOT)))


if __name__ == "__main__":
    main()
