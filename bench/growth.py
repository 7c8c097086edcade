"""How the phases of a GRPO step grow: images, completions, their length and the model doubled, one at a time.

    python -m bench.growth                        # about 3 minutes

The stage's own engine and learner in one process, each phase alone on all cores: nothing overlaps, so what grows can be
told apart (a whole stage is `bench.step`, where the driver waits while the learner learns). Images are processed anew
in every step, and a sync goes through the object store. The exponent e says that a phase takes 2^e times as long when
that one number is doubled: 1 is in proportion.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from actors.experience.queues import make_shards
from actors.learner.learner import Learner
from actors.reward.verifier import make_groups
from actors.rollout.engine import RolloutEngine
from actors.rollout.prompts import PromptMaker
from actors.runtime.messages import Sampling
from actors.weights.publish import pack_weights
from bench.measure import write_results
from bench.shapes import SMALL
from bench.step import make_samples
from hatch_ray.config import Config, make_config
from hatch_ray.environment import variables
from hatch_ray.sample import Sample
from tools.tiny import TinyConfig, make_tiny

BASE = SMALL["6m"]
TWICE = TinyConfig(text_layers=2 * BASE.text_layers, text_width=BASE.text_width, text_heads=BASE.text_heads,
                   text_inner=BASE.text_inner, vision_layers=2 * BASE.vision_layers)  # fmt: skip
"""Twice as many layers in the encoder and in the language model."""
WARM_UP = 1
"""Steps of each load that are not counted."""


class Stepper:
    """An engine and a learner of one model in this process. A call is one GRPO step."""

    def __init__(self, folder: Path, shape: TinyConfig, options: argparse.Namespace) -> None:
        self.model = make_tiny(folder / "model", 0, shape)
        self.config = settings(self.model, folder, options)
        self.engine = RolloutEngine(self.model, self.config)
        self.learner = Learner(self.config, self.model, 1000)
        self.version = 0

    def __call__(self, samples: list[Sample], sampling: Sampling) -> dict[str, float]:
        """Seconds of each phase. Nothing remembers the images of the step before."""
        self.engine.llm.reset_mm_cache()
        self.engine._images.clear()
        maker = PromptMaker(self.config, self.model, for_learner=True)
        marks = [time.perf_counter()]
        requests = [maker.request(sample, self.version + number) for number, sample in enumerate(samples)]
        marks.append(time.perf_counter())
        rollouts = self.engine.generate(requests, sampling)
        marks.append(time.perf_counter())
        system = maker.system
        targets = [system.target(sample, "grpo") for sample in samples]
        scores = [
            system.score(reply.text, target).row(system.weights())
            for rollout, target in zip(rollouts, targets, strict=True)
            for reply in rollout.replies
        ]
        marks.append(time.perf_counter())
        (shard,) = make_shards(self.version, make_groups(requests, rollouts, scores), workers=1)
        self.learner.update(shard)
        marks.append(time.perf_counter())
        self.version += 1
        weights = {name: tensor.clone() for name, tensor in self.learner.each_learned_weight()}
        self.engine.load(ray.get(ray.put(pack_weights(weights, self.version))))
        marks.append(time.perf_counter())
        phases = ("prepare", "generate", "reward", "learn", "sync")
        seconds = {name: end - start for name, start, end in zip(phases, marks, marks[1:], strict=False)}
        return seconds | {"step": marks[-1] - marks[0]}


def settings(model: Path, run: Path, options: argparse.Namespace) -> Config:
    """One engine and one learner worker, each on all cores."""
    return make_config({
        "run_dir": str(run),
        "model": {"base": str(model), "template": "compact-v1", "max_images": 2 * options.images, "max_length": 2048,
                  "max_pixels": options.pixels**2},
        "rollout": {"cpus": len(os.sched_getaffinity(0)), "kv_cache_mb": 256},
    })  # fmt: skip


def measure(step: Stepper, samples: list[Sample], sampling: Sampling, steps: int) -> dict[str, float]:
    """Median seconds of each phase of a step on these samples."""
    found = [step(samples, sampling) for _ in range(WARM_UP + steps)][WARM_UP:]
    return {phase: round(statistics.median(one[phase] for one in found), 4) for phase in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--reply", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    base = Sampling(options.group, 1.0, options.reply)
    cores = len(os.sched_getaffinity(0))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level="warning", log_to_driver=False,
             runtime_env={"env_vars": variables()})  # fmt: skip
    seconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many = (make_samples(folder, options.prompts, k * options.images, options.pixels) for k in (1, 2))
        loads = {
            "base": (BASE, few, base),
            "images": (BASE, many, base),
            "completions": (BASE, few, Sampling(2 * base.n, 1.0, base.max_new_tokens)),
            "reply length": (BASE, few, Sampling(base.n, 1.0, 2 * base.max_new_tokens)),
            "model layers": (TWICE, few, base),
        }
        steppers = {shape: Stepper(folder / str(shape.text_layers), shape, options) for shape in (BASE, TWICE)}
        for load, (shape, samples, sampling) in loads.items():
            seconds[load] = measure(steppers[shape], samples, sampling, options.steps)
            print(f"{load}: " + ", ".join(f"{p} {value:.3f} s" for p, value in seconds[load].items()), flush=True)
    exponents = {
        load: {phase: round(math.log2(value / seconds["base"][phase]), 2) for phase, value in found.items()}
        for load, found in seconds.items()
        if load != "base"
    }
    figures: dict[str, Any] = {"command": vars(options), "seconds": seconds, "exponents": exponents}
    print(f"written: {write_results('growth', figures)}")


if __name__ == "__main__":
    main()
