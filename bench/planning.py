"""What `hatch plan` predicts against runs: costs from small runs, predictions of other sizes, and those sizes measured.

    python -m bench.planning                      # ten sizes, three of them twice; on two slow cores 20 minutes
    python -m bench.planning --steps 5 --few      # six sizes, two of them twice, to see it work

Costs come from runs with one engine and one learner worker at three sizes (prompts a step, replies a prompt), each
made before and again after the others, since a shared machine's speed drifts, and from one run with two engines and one
with two workers. Predicted and measured are both at once, other prompts and replies, and a run whose learner works
beside the engines. Every process has one thread; a model of 6 M parameters with random weights (its replies hardly ever
end early), two images of 112 px, all on one machine, so that the network is not part of it. Written to
bench/results/planning.json, which hatch_ray/planning/measured.json links to: the costs of `hatch plan`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from actors.stages.grpo import run_grpo
from bench.measure import in_turn, machine, write_results
from bench.shapes import SMALL, picture
from bench.step import make_samples
from hatch_ray.config import Config, make_config, save_config
from hatch_ray.environment import variables
from hatch_ray.model.base import load_processor
from hatch_ray.model.prompt_tokens import process_image
from hatch_ray.model.size import count_parameters
from hatch_ray.planning.costs import Measured, Sizes, costs_of
from hatch_ray.planning.model import Plan, Work, predict
from hatch_ray.run_folder import RunFolder
from tools.tiny import make_tiny

IMAGES, PIXELS, LARGE = 2, 112, 401408
WITHIN = 0.25
"""How far off a prediction may be."""

FIRST = [Sizes(4, 4, 1, 1, 1), Sizes(4, 8, 1, 1, 1), Sizes(8, 4, 1, 1, 1)]
"""What the costs come from."""
BESIDE = [Sizes(4, 8, 2, 1, 1), Sizes(4, 8, 1, 1, 2)]
"""What the slowdown of several on one machine comes from."""
CHECKED = [
    Sizes(4, 4, 2, 1, 1), Sizes(4, 4, 1, 1, 2), Sizes(8, 8, 1, 1, 1), Sizes(8, 8, 2, 2, 2),
    Sizes(8, 8, 1, 1, 1, max_staleness=1),
]  # fmt: skip


def settings(model: Path, run: Path, sizes: Sizes, reply: int, steps: int) -> Config:
    """A run of these sizes."""
    return make_config({
        "run_dir": str(run), "stages": ["grpo"], "tensorboard": False,
        "model": {"base": str(model), "template": "compact-v1", "max_images": IMAGES, "max_length": 1024,
                  "max_pixels": PIXELS**2},
        "grpo": {"max_steps": steps, "epochs": 1000, "prompts_per_step": sizes.groups, "group_size": sizes.group_size,
                 "max_new_tokens": reply, "save_every": 1000, "max_staleness": sizes.max_staleness},
        "rollout": {"actors": sizes.engines, "cpus": 1, "kv_cache_mb": 128},
        "reward_actors": {"actors": sizes.reward_actors, "cpus": 0.1},
        "learner": {"workers": sizes.workers, "cpus": 1},
    })  # fmt: skip


def measure(model: Path, folder: Path, sizes: Sizes, reply: int, steps: int) -> Measured:
    """Run it; the medians of its phases."""
    name = (
        f"{sizes.groups}x{sizes.group_size}-{sizes.engines}-{sizes.reward_actors}-{sizes.workers}-{sizes.max_staleness}"
    )
    run = RunFolder(folder / name)
    config = settings(model, run.path, sizes, reply, steps)
    save_config(config, run.config_path)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    samples = make_samples(folder / "images", sizes.groups * steps, IMAGES, PIXELS)
    run_grpo(config, run, str(model), samples, lambda *_: None)
    return Measured.of_run(run)


def measure_all(all_sizes: Sequence[Sizes], model: Path, folder: Path, options: argparse.Namespace) -> list[Measured]:
    """`measure` of each size, told as it goes."""
    found = []
    for sizes in all_sizes:
        found.append(measure(model, folder, sizes, options.reply, options.steps))
        print(f"{folder.name}: {words(sizes)}: {found[-1].seconds:.2f} s a step", flush=True)
    return found


def row(sizes: Sizes, plan: Plan, found: Measured) -> dict[str, Any]:
    """Predicted against measured."""
    phases = {name: [round(plan.phases[name], 4), round(getattr(found, name), 4)] for name in
              ("generate", "reward", "learn", "sync")}  # fmt: skip
    return {
        "sizes": sizes.__dict__, "predicted": round(plan.seconds, 4), "measured": round(found.seconds, 4),
        "off": round(plan.seconds / found.seconds - 1, 4), "phases": phases,
    }  # fmt: skip


def prepare_large(model: Path) -> float:
    """Seconds of the processor for a group of configs/hatch_3b.yaml: four images of 401,408 pixels."""
    processor, pixels = load_processor(str(model), LARGE), [picture(number, 633) for number in range(4)]
    taken = in_turn({"prepare": lambda: [process_image(processor, one) for one in pixels]}, rounds=5)
    return round(taken["prepare"]["median"], 4)


def words(sizes: Sizes) -> str:
    """A size as the table has it."""
    beside = ", learner beside" if sizes.max_staleness else ""
    return f"{sizes.groups} x {sizes.group_size}, {sizes.engines} engines, {sizes.workers} workers{beside}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="of each run; the first two are not counted")
    parser.add_argument("--reply", type=int, default=64, help="longest reply, tokens")
    parser.add_argument("--few", action="store_true", help="two sizes for the costs and two to check")
    parser.add_argument("--out", type=Path, help="default: bench/results/planning.json")
    options = parser.parse_args()
    first, beside, checked = (FIRST[:2], BESIDE[:1], CHECKED[::2]) if options.few else (FIRST, BESIDE, CHECKED)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_tiny(folder / "model", 0, SMALL["6m"])
        ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="warning", log_to_driver=False,
                 runtime_env={"env_vars": variables() | {"OMP_NUM_THREADS": "1"}})  # fmt: skip
        try:
            known = measure_all([*first, *beside], model, folder / "before", options)
            seen = measure_all(checked, model, folder / "checked", options)
            known += measure_all(first, model, folder / "after", options)
        finally:
            ray.shutdown()
        prepared = prepare_large(model)
        parameters = count_parameters(str(model))
        work = Work.of(settings(model, folder / "run", first[0], options.reply, options.steps), parameters)
    found = machine()
    costs = costs_of(known, parameters, work.image_bytes, f"a core of {found['processor']} each")
    rows = []
    for sizes, one in zip(checked, seen, strict=True):
        rows.append(row(sizes, predict(costs, replace(work, sizes=sizes)), one))
        print(f"{words(sizes)}: predicted {rows[-1]['predicted']:.2f} s, measured {rows[-1]['measured']:.2f} "
              f"({rows[-1]['off']:+.0%})", flush=True)  # fmt: skip
    worst = max(abs(one["off"]) for one in rows)
    control = {
        "control_per_step": costs.control.step, "control_per_group": costs.control.group,
        "control_per_reply": costs.control.reply, "prepare_per_group": costs.prepare,
        "prepare_large_group": prepared,
    }  # fmt: skip
    print(f"worst: {worst:.0%} off; the driver's own time: {control['prepare_per_group'] * 1000:.1f} ms a group to "
          f"prepare, {costs.control.seconds(1, 8) * 1000:.1f} ms for a step of one group of 8")  # fmt: skip
    figures = {"command": {key: str(value) for key, value in vars(options).items()}, "costs": asdict(costs),
               "driver": control, "rows": rows, "worst": worst, "within": worst <= WITHIN}  # fmt: skip
    print(f"written: {write_results('planning', figures, options.out)}")
    if worst > WITHIN:
        raise SystemExit(f"a prediction is more than {WITHIN:.0%} off")


if __name__ == "__main__":
    main()
