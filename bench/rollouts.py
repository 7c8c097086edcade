"""Tokens a second of a rollout actor, against the same vLLM engine called directly on the same prompts; and a sync.

    python -m bench.rollouts

Both engines are up and take turns, with the same seeds, so they sample the same tokens. Prompts repeat, so prefixes and
images are cached: what is compared is decoding. A sync is what happens between two steps, by either carrier
(`rollout.weights`): the learner's copy, then checksum, carrier and the engine's reload; beside it a memory copy of as
many bytes in the learner's process. One engine on all cores, a model of hatch-tiny's size with random weights (its
replies hardly ever end early), two images a prompt.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import ray
import torch

from actors.experience.queues import WeightsBoard
from actors.rollout.engine import RolloutEngine
from actors.rollout.engines import EnginePool
from actors.runtime.messages import Request, Sampling, StoredImage
from actors.weights.publish import Publisher
from bench.measure import in_turn, write_results
from bench.shapes import picture
from hatch_ray.config import Config, make_config
from hatch_ray.config_sections import WeightsCarrier
from hatch_ray.data.images import image_hash
from hatch_ray.environment import variables
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.protocol.prompt import build_prompt
from tools.tiny import make_tiny

WARM_UP = 2
"""Syncs that are not counted."""


def settings(model: Path, cores: int) -> Config:
    """One engine on all cores."""
    return make_config({
        "model": {"base": str(model), "template": "compact-v1", "max_pixels": 12544, "max_length": 512},
        "rollout": {"cpus": cores, "kv_cache_mb": 128},
    })  # fmt: skip


def make_requests(config: Config, prompts: int, images: int) -> list[Request]:
    """Questions over pictures of their own."""
    processor = load_processor(config.model.base, config.model.max_pixels)
    found = []
    for number in range(prompts):
        messages = build_prompt("How far is the red chair, in metres?", images, "number", "actions", "compact-v1")
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pictures = [picture(number * images + view, 112) for view in range(images)]
        stored = tuple(StoredImage(image_hash(one), ray.put(np.asarray(one))) for one in pictures)
        found.append(Request(str(number), text, stored, seed=number))
    return found


def measure_rollouts(bare: RolloutEngine, engines: EnginePool, requests: list[Request], rounds: int) -> dict[str, Any]:
    """Tokens a second of both ways."""
    sampling = Sampling(n=8, temperature=1.0, max_new_tokens=96)
    tokens: dict[str, int] = {}
    prompts = [
        {"prompt": r.prompt, "multi_modal_data": {"image": [bare._image(image) for image in r.images]}}
        for r in requests
    ]
    parameters = [bare._parameters(request, sampling) for request in requests]

    def directly() -> None:
        outputs = bare.llm.generate(prompts, parameters, use_tqdm=False)
        tokens["vllm"] = sum(len(one.token_ids) for output in outputs for one in output.outputs)

    def through_ray() -> None:
        rollouts = engines.generate(requests, sampling)
        tokens["actor"] = sum(len(reply.token_ids) for rollout in rollouts for reply in rollout.replies)

    seconds = in_turn({"vllm": directly, "actor": through_ray}, rounds)
    speeds = {name: tokens[name] / found["median"] for name, found in seconds.items()}
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": speeds, "share": speeds["actor"] / speeds["vllm"]}


class Learning:
    """The learner's side of a sync, in a process of its own."""

    def __init__(self, model: str, board: ray.actor.ActorHandle, carrier: WeightsCarrier) -> None:
        self.state = load_model(model).state_dict()
        self.publisher = Publisher(board, carrier)
        self.bytes = sum(tensor.nbytes for tensor in self.state.values())
        self.source = torch.zeros(self.bytes, dtype=torch.uint8)
        self.target = torch.zeros_like(self.source)

    def publish(self, version: int) -> dict[str, float]:
        """Seconds that the learner waits, and that its thread takes; and of a memory copy of as many bytes."""
        start = time.perf_counter()
        self.publisher.publish(self.state.items(), version)
        waited = time.perf_counter()
        self.publisher.wait()
        sent = time.perf_counter()
        self.target.copy_(self.source)
        return {"copy": waited - start, "send": sent - waited, "memory_copy": time.perf_counter() - sent}

    def size(self) -> int:
        """Bytes of the weights."""
        return self.bytes


def measure_sync(engines: EnginePool, model: str, rounds: int) -> dict[str, Any]:
    """Seconds of each part of a sync, and of a memory copy of the same bytes, by each carrier.

    One after the other: once a process has sent or fetched by NIXL, a thread of NIXL's keeps a core busy in it.
    """
    medians = {}
    for carrier in get_args(WeightsCarrier):
        board = ray.remote(WeightsBoard).options(num_cpus=0, max_concurrency=4).remote(0)
        learner = ray.remote(Learning).options(num_cpus=0).remote(model, board, carrier)
        parts: dict[str, list[float]] = {}
        for version in range(1, 1 + WARM_UP + rounds):
            seconds = ray.get(learner.publish.remote(version), timeout=120)
            handle = ray.get(board.wait_for.remote(version), timeout=120)[1]
            start = time.perf_counter()
            engines.sync(handle)
            seconds["engine"] = time.perf_counter() - start
            if version > WARM_UP:
                for name, value in seconds.items():
                    parts.setdefault(name, []).append(value)
        medians[carrier] = {name: statistics.median(values) for name, values in parts.items()}
        size = ray.get(learner.size.remote(), timeout=60)
        ray.kill(learner)
    return {"bytes": size, "parts": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    folder = tempfile.TemporaryDirectory()
    source = str(make_tiny(Path(folder.name) / "model", 0))
    config = settings(Path(source), cores)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level="warning", log_to_driver=False,
             runtime_env={"env_vars": variables()})  # fmt: skip
    engines = EnginePool(source, config)
    bare = RolloutEngine(source, config)
    try:
        rollouts = measure_rollouts(bare, engines, make_requests(config, options.prompts, 2), options.rounds)
        sync = measure_sync(engines, source, options.rounds)
    finally:
        engines.stop()
    speeds = rollouts["tokens_per_s"]
    print(f"rollouts: vLLM {speeds['vllm']:.0f} tokens/s, actor {speeds['actor']:.0f} ({rollouts['share']:.1%})")
    for carrier, found in sync["parts"].items():
        parts = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.1f} ms" for name, value in found.items())
        print(f"sync of {sync['bytes'] / 2**20:.1f} MiB by {carrier}: {parts}")
    print(f"written: {write_results('rollouts', {'rollouts': rollouts, 'sync': sync})}")


if __name__ == "__main__":
    main()
