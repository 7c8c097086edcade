"""The service against its own engine: added time of a request, and throughput.

    python -m bench.serve                 # hatch-tiny's size and 30 M, each behind both kinds of ingress

Added time: one request after the other, in turn to the service and to a bare AsyncLLM with the service's arguments.
The bare engine gets rendered prompts and decoded images, so what is added is base64, images, prompt, HTTP, Ray Serve
and the reply's reading. Two engine processes seldom run at quite the same speed; "outside" is a request's time beside
the engine's own call in it, which that does not change. Throughput: clients that each ask one request after the other,
in turn the bare engine and the service. Both write the same words (greedy), which is checked; random weights hardly
ever end a reply early.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import ray

from bench.measure import write_results
from bench.shapes import SMALL, picture
from hatch_ray.config import Config, make_config, save_config
from hatch_ray.environment import variables
from hatch_ray.run_folder import RunFolder
from serve.engine import ReasonEngine
from serve.launch import start_service, stop_service
from serve.reason import prepare
from serve.schema import ReasonRequest
from serve.settings import Settings
from tools.tiny import TinyConfig, make_tiny

SHAPES = {"tiny": TinyConfig(), "30m": SMALL["30m"]}
WAYS = ("proxy", "haproxy")
"""Ray Serve's own proxy, as the service is shipped, and serve.haproxy=true."""
PORT = 8123
IMAGES = 2


def encoded(number: int) -> str:
    buffer = io.BytesIO()
    picture(number, 112).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def questions(count: int) -> list[dict[str, Any]]:
    """Requests over pictures of their own."""
    return [
        {"images": [encoded(number * IMAGES + view) for view in range(IMAGES)],
         "question": f"How far is the red chair from table {number}, in metres?", "answer_form": "number"}
        for number in range(count)
    ]  # fmt: skip


def settings(model: Path, run: Path, tokens: int, haproxy: bool = False) -> tuple[Config, RunFolder]:
    """A run folder whose model is the one to serve, on all cores."""
    folder = RunFolder(run)
    (folder.path / "grpo").mkdir(parents=True)
    folder.stage_model("grpo").symlink_to(model)
    folder.link_model("grpo")
    config = make_config({
        "run_dir": str(run),
        "model": {"template": "compact-v1", "max_images": IMAGES, "max_length": 512, "max_pixels": 12544},
        "rollout": {"kv_cache_mb": 128, "image_cache_mb": 16},
        "serve": {"port": PORT, "max_new_tokens": tokens, "cpus": 1, "deadline_seconds": 60, "max_waiting": 64,
                  "haproxy": haproxy},
    })  # fmt: skip
    save_config(config, folder.config_path)
    return config, folder


class Bare:
    """The service's engine without the service: prompts are rendered and images decoded beforehand."""

    def __init__(self, config: Config, run: RunFolder, asked: list[dict[str, Any]]) -> None:
        self.engine = ReasonEngine(Settings.of(config, run))
        self.tokens = config.serve.max_new_tokens
        self.prompts = [prepare(ReasonRequest(**one), self.engine.settings, self.engine.processor) for one in asked]

    async def ask(self, index: int) -> str:
        from vllm.sampling_params import RequestOutputKind

        prompt, images, _ = self.prompts[index]
        sampling = self.engine.sampling(temperature=0.0, max_tokens=self.tokens)
        sampling.output_kind = RequestOutputKind.FINAL_ONLY
        inputs: Any = {"prompt": prompt, "multi_modal_data": {"image": images}}
        outputs = [output async for output in self.engine.engine.generate(inputs, sampling, os.urandom(8).hex())]
        return self.engine.text(outputs[-1].outputs[0].token_ids)


class Served:
    """The same requests over HTTP."""

    def __init__(self, url: str, asked: list[dict[str, Any]]) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=64))
        self.bodies = [json.dumps(one).encode() for one in asked]
        self.outside: list[float] = []
        """Milliseconds of each request beside its generation, by the service's own clock."""
        self.own: list[float] = []
        """Of those, in the replica: base64, images, prompt, queue, reading of the reply. The rest is HTTP and Serve."""

    async def ask(self, index: int) -> str:
        start = time.perf_counter()
        response = await self.client.post(
            "/reason", content=self.bodies[index], headers={"content-type": "application/json"}
        )
        response.raise_for_status()
        reply = response.json()
        seconds = reply["seconds"]
        self.outside.append(1000 * (time.perf_counter() - start - seconds["generate"]))
        self.own.append(1000 * (seconds["total"] - seconds["generate"]))
        return str(reply["text"])


async def added_time(bare: Bare, served: Served, rounds: int) -> dict[str, Any]:
    """Milliseconds of one request at a time, both ways in turn, and of the difference."""
    count = len(bare.prompts)
    for index in range(min(4, count)):
        assert await bare.ask(index) == await served.ask(index), "the service writes what its engine writes"
    times: dict[str, list[float]] = {"bare": [], "served": []}
    for number in range(rounds):
        for name, way in (("bare", bare), ("served", served)):
            start = time.perf_counter()
            await way.ask(number % count)
            times[name].append(1000 * (time.perf_counter() - start))
    added = [there - here for here, there in zip(times["bare"], times["served"], strict=True)]
    found = {name: statistics.median(values) for name, values in times.items()}
    parts = {"outside": served.outside[-rounds:], "own": served.own[-rounds:]}
    return found | {"added": statistics.median(added)} | {name: statistics.median(of) for name, of in parts.items()}


async def throughput(way: Bare | Served, clients: int, requests: int) -> float:
    """Requests a second of so many clients, after one round that warms up."""
    count = len(way.prompts if isinstance(way, Bare) else way.bodies)

    async def client(own: list[int]) -> None:
        for index in own:
            await way.ask(index % count)

    for total in (clients, requests):
        start = time.perf_counter()
        await asyncio.gather(*(client(list(range(first, total, clients))) for first in range(clients)))
    return requests / (time.perf_counter() - start)


async def measure(config: Config, run: RunFolder, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Added time and throughput of one model."""
    asked = questions(options.clients)
    bare, served = Bare(config, run, asked), Served(url, asked)
    try:
        found: dict[str, Any] = {"milliseconds": await added_time(bare, served, options.rounds)}
        speeds: dict[str, list[float]] = {"bare": [], "served": []}
        for _ in range(options.turns):
            for name, way in (("bare", bare), ("served", served)):
                speeds[name].append(await throughput(way, options.clients, options.requests))
        found["requests_per_s"] = {name: statistics.median(values) for name, values in speeds.items()}
        found["share"] = found["requests_per_s"]["served"] / found["requests_per_s"]["bare"]
    finally:
        await bare.engine.close()
        await served.client.aclose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--rounds", type=int, default=40, help="requests one at a time, each way")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=160, help="of one turn of the throughput, each way")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of each engine: the service's has one CPU
    ray.init(address="local", include_dashboard=False, logging_level="warning", log_to_driver=False,
             runtime_env={"env_vars": variables()})  # fmt: skip
    figures: dict[str, Any] = {"command": vars(options), "models": {}}
    with tempfile.TemporaryDirectory() as name:
        for shape in options.shapes:
            model = make_tiny(Path(name) / f"{shape}-model", 0, SHAPES[shape])
            for way in WAYS:
                config, run = settings(model, Path(name) / f"{shape}-{way}", options.tokens, way == "haproxy")
                url = start_service(config, run)
                try:
                    found = asyncio.run(measure(config, run, url, options))
                    figures["models"].setdefault(shape, {})[way] = found
                    times, speeds = found["milliseconds"], found["requests_per_s"]
                    print(f"{shape}, {way}: {times['added']:.1f} ms added to {times['bare']:.1f} ms, "
                          f"{times['outside']:.1f} outside the engine; {speeds['served']:.1f} requests/s of "
                          f"{speeds['bare']:.1f} ({found['share']:.1%})", flush=True)  # fmt: skip
                finally:
                    stop_service()
    print(f"written: {write_results('serve', figures)}")


if __name__ == "__main__":
    main()
