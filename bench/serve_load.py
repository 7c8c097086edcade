"""A long load on the service, good requests and bad: what is answered, how soon, and whether memory grows.

python -m bench.serve_load --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray

from bench.measure import write_results
from bench.serve import IMAGES, SHAPES, encoded, questions, settings
from hatch_ray.environment import variables
from serve.launch import start_service, stop_service
from tools.tiny import make_tiny

PICTURES = 256
"""Of the mixed load: 74 MiB once processed, of which the engine keeps 16."""

BAD: list[tuple[str, Any]] = [
    ("no images", lambda one: one | {"images": []}),
    ("no image", lambda one: one | {"images": [base64.b64encode(b"no image" * 99).decode()]}),
    ("broken image", lambda one: one | {"images": [one["images"][0][:400]]}),
    ("no base64", lambda one: one | {"images": ["%%%"]}),
    ("long question", lambda one: one | {"question": "how far? " * 2**17}),
    ("prompt token", lambda one: one | {"question": "<|im_start|>system"}),
    ("unknown field", lambda one: one | {"top_p": 1}),
    ("temperature", lambda one: one | {"temperature": 9}),
]
"""What a tenth of the mixed load asks."""


async def mixed_load(url: str, minutes: float, clients: int) -> dict[str, Any]:
    """Good requests, one in ten bad and one in fifty left before its answer; statuses, milliseconds, memory.

    Each shows two of PICTURES, more than the engine keeps.
    """
    pictures = [encoded(number) for number in range(PICTURES)]
    asked = questions(clients)
    statuses: collections.Counter[str] = collections.Counter()
    times: list[float] = []
    memory = [service_memory()]
    end = time.monotonic() + 60 * minutes

    async def client(number: int, http: httpx.AsyncClient) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            one, draw = chance.choice(asked) | {"images": chance.sample(pictures, IMAGES)}, chance.random()
            if draw < 0.1:
                one = chance.choice(BAD)[1](one)
            start = time.perf_counter()
            try:
                timeout = 0.02 if draw > 0.98 else 120
                response = await http.post("/reason", json=one | {"temperature": one.get("temperature", 1.0)},
                                           timeout=timeout)  # fmt: skip
            except httpx.TimeoutException:
                statuses["left"] += 1
                continue
            statuses[str(response.status_code)] += 1
            if response.status_code == 200:
                times.append(1000 * (time.perf_counter() - start))

    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=2 * clients)) as http:
        working = [asyncio.create_task(client(number, http)) for number in range(clients)]
        while time.monotonic() < end:
            await asyncio.sleep(min(30.0, max(0.0, end - time.monotonic())))
            memory.append(service_memory())
        await asyncio.gather(*working)
    cuts = statistics.quantiles(times, n=100)
    return {
        "minutes": minutes,
        "clients": clients,
        "statuses": dict(sorted(statuses.items())),
        "milliseconds": {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]},
        "memory_mb": memory,
    }


def service_memory() -> dict[str, float]:
    """MB (PSS) of the replica, its engine and the proxy."""
    found: dict[str, float] = dict.fromkeys(("replica", "engine", "proxy"), 0.0)
    for process in psutil.process_iter():
        try:
            command = (process.cmdline() or [""])[0]
            if command.startswith("ray::ProxyActor"):
                found["proxy"] += process.memory_full_info().pss / 1e6
            if command.startswith("ray::ServeReplica:hatch:"):
                found["replica"] += process.memory_full_info().pss / 1e6
                found["engine"] += sum(one.memory_full_info().pss for one in process.children(recursive=True)) / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(address="local", include_dashboard=False, logging_level="warning", log_to_driver=False,
             runtime_env={"env_vars": variables()})  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        model = make_tiny(Path(name) / "model", 0, SHAPES[options.shape])
        url = start_service(*settings(model, Path(name) / "run", options.tokens))
        try:
            load = asyncio.run(mixed_load(url, options.minutes, options.clients))
        finally:
            stop_service()
    print(f"{load['minutes']:g} minutes: {load['statuses']}, {load['milliseconds']}, memory MB "
          f"{load['memory_mb'][0]} to {load['memory_mb'][-1]}")  # fmt: skip
    print(f"written: {write_results('serve_load', {'command': vars(options)} | load)}")


if __name__ == "__main__":
    main()
