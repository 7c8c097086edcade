"""How the phases of a GRPO step grow: images, completions, their length and the model doubled, one at a time.

    python -m bench.growth                        # about 8 minutes

One engine and one learner worker, so that nothing of what grows is waiting for another of its kind.
The exponent e says that a phase takes 2^e times as long when that one number is doubled: 1 is in proportion.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import ray

from bench.measure import write_results
from bench.shapes import SMALL
from bench.step import PHASES, make_samples, ours, settings
from hatch_ray.environment import variables
from hatch_ray.model.tiny import TinyConfig, make_tiny

BASE = SMALL["6m"]
TWICE = TinyConfig(text_layers=2 * BASE.text_layers, text_width=BASE.text_width, text_heads=BASE.text_heads,
                   text_inner=BASE.text_inner, vision_layers=2 * BASE.vision_layers)  # fmt: skip
"""Twice as many layers in the encoder and in the language model."""


def one_run(options: argparse.Namespace, images: int, model: TinyConfig) -> dict[str, float]:
    """Seconds of each phase and of the whole step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_tiny(folder / "model", 0, model)
        samples = make_samples(folder, options.prompts * options.steps, images, options.pixels)
        ray.init(address="local", include_dashboard=False, logging_level="warning", log_to_driver=False,
                 runtime_env={"env_vars": variables()})  # fmt: skip
        try:
            found = ours(settings(base, folder / "run", options, images, processes=1), samples)
        finally:
            ray.shutdown()
    return {phase: found["phases"][phase] for phase in PHASES} | {"step": found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--reply", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    longer, larger = copy.copy(options), copy.copy(options)
    longer.reply, larger.group = 2 * options.reply, 2 * options.group
    runs = {
        "base": (options, options.images, BASE),
        "images": (options, 2 * options.images, BASE),
        "completions": (larger, options.images, BASE),
        "reply length": (longer, options.images, BASE),
        "model layers": (options, options.images, TWICE),
    }
    seconds: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        seconds[name] = one_run(*run)
        print(f"{name}: " + ", ".join(f"{phase} {value:.3f} s" for phase, value in seconds[name].items()), flush=True)
    exponents: dict[str, dict[str, Any]] = {}
    for name, found in seconds.items():
        if name != "base":
            grown = {phase: (value, seconds["base"][phase]) for phase, value in found.items()}
            exponents[name] = {
                p: round(math.log2(v / b), 2) if v > 0 and b > 0 else None for p, (v, b) in grown.items()
            }
    figures = {"command": vars(options), "seconds": seconds, "exponents": exponents}
    print(f"written: {write_results('growth', figures)}")


if __name__ == "__main__":
    main()
