"""Tokens a second of a rollout actor, against the same vLLM engine called directly on the same prompts; and a sync.

    python -m bench.rollouts

Both engines are up and take turns, with the same seeds, so they sample the same tokens. Prompts repeat, so prefixes and
images are cached: what is compared is decoding. A sync is what happens between two steps: the learner's copy, then
checksum, object store and the engine's reload; beside it a memory copy of as many bytes. One engine on all cores, a
model of hatch-tiny's size with random weights (its replies hardly ever end early), two images a prompt.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.engines import EnginePool
from actors.messages import Request, Sampling, StoredImage, WeightsHandle
from actors.rollout import RolloutEngine
from actors.weights import pack_weights
from bench.measure import in_turn, write_results
from bench.shapes import picture
from hatch_ray.config import Config, make_config
from hatch_ray.data.images import image_hash
from hatch_ray.environment import variables
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.model.tiny import make_tiny
from hatch_ray.protocol.prompt import build_prompt


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


def measure_sync(engines: EnginePool, model: torch.nn.Module, rounds: int) -> dict[str, Any]:
    """Seconds of each part of a sync, and of a memory copy of the same bytes."""
    state = model.state_dict()
    size = sum(tensor.nbytes for tensor in state.values())
    version = [0]
    parts: dict[str, list[float]] = {"copy": [], "checksum_and_store": [], "engine": []}

    def sync() -> None:
        start = time.perf_counter()
        copy = {name: tensor.detach().clone() for name, tensor in state.items()}
        copied = time.perf_counter()
        version[0] += 1
        handle = WeightsHandle(version[0], ray.put(pack_weights(copy, version[0])))
        stored = time.perf_counter()
        engines.sync(handle)
        for name, seconds in zip(parts, (copied - start, stored - copied, time.perf_counter() - stored), strict=True):
            parts[name].append(seconds)

    source = torch.empty(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    sync()  # the first one is a warm-up for its parts, too
    for values in parts.values():
        values.clear()
    seconds = in_turn({"sync": sync, "memory_copy": lambda: target.copy_(source)}, rounds, warm_up=0)
    medians = {name: sorted(values)[len(values) // 2] for name, values in parts.items()}
    return {"bytes": size, "seconds": seconds, "parts": medians}


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
        sync = measure_sync(engines, load_model(source), options.rounds)
    finally:
        engines.stop()
    speeds = rollouts["tokens_per_s"]
    print(f"rollouts: vLLM {speeds['vllm']:.0f} tokens/s, actor {speeds['actor']:.0f} ({rollouts['share']:.1%})")
    times = {name: found["median"] * 1000 for name, found in sync["seconds"].items()}
    parts = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.1f} ms" for name, value in sync["parts"].items())
    print(f"sync of {sync['bytes'] / 2**20:.1f} MiB: {times['sync']:.1f} ms ({parts}); memory copy "
          f"{times['memory_copy']:.1f} ms")  # fmt: skip
    print(f"written: {write_results('rollouts', {'rollouts': rollouts, 'sync': sync})}")


if __name__ == "__main__":
    main()
