"""Whole GRPO steps: this project's stage (vLLM rollouts, reward actors, Ray Train learner) against TRL's GRPOTrainer.

    python -m bench.step                          # 6 M, 3 and 8 images of 224 px; about 8 minutes

The same model of random weights, pictures, questions, reward function, group size and longest completion, fp32, all
cores for each, one after the other. TRL samples with transformers (its vLLM mode does not run on a CPU as it is
published) and keeps activations, as we do. Seconds of a step are medians after the first two; of TRL's, which take long
and are alike, the second one counts. Random weights hardly ever end a reply early; the mean length of both is reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from actors.stages.grpo import run_grpo
from bench.measure import write_results
from bench.shapes import SMALL, picture
from hatch_ray.config import Config, make_config, save_config
from hatch_ray.config_sections import RewardConfig
from hatch_ray.environment import variables
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.protocol.prompt import sample_prompt
from hatch_ray.rewards.terms import RewardTarget, reward_weights, score_reply
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import PairPlan, Sample, View
from tools.tiny import make_tiny

WARM_UP = 2
"""Our steps that are not counted: the wait of the second one is for the first one's learning."""
TRL_STEPS, TRL_WARM_UP = 2, 1
PHASES = ("prepare", "generate", "reward", "wait", "sync", "learn")


def settings(model: Path, run: Path, options: argparse.Namespace, images: int) -> Config:
    """An engine and a learner worker for each core, that take turns on the cores as in the demo."""
    cores = len(os.sched_getaffinity(0))
    return make_config({
        "run_dir": str(run), "stages": ["grpo"], "tensorboard": False,
        "model": {"base": str(model), "template": "compact-v1", "max_images": images, "max_length": 2048,
                  "max_pixels": options.pixels**2},
        "grpo": {"max_steps": options.steps, "epochs": 1000, "prompts_per_step": options.prompts,
                 "group_size": options.group, "max_new_tokens": options.reply, "save_every": 1000},
        "rollout": {"actors": cores, "cpus": 0.4, "kv_cache_mb": 256},
        "reward_actors": {"actors": 1, "cpus": 0.1},
        "learner": {"workers": cores, "cpus": 0.5},
    })  # fmt: skip


def make_samples(folder: Path, count: int, images: int, pixels: int) -> list[Sample]:
    """Questions over pictures of their own; every pair of views has a gold plan."""
    samples = []
    for number in range(count):
        views = []
        for view in range(images):
            path = folder / f"{number}-{view}.png"
            picture(number * images + view, pixels).save(path)
            views.append(View(path))
        pairs = [(i, j) for i in range(images) for j in range(i + 1, images)]
        plans = tuple(PairPlan(i, j, (("turn_right_deg", 30.0),)) for i, j in pairs)
        question = f"How far is the red chair from the table number {number}, in metres?"
        samples.append(Sample(str(number), str(number), "depth_prediction_oc_mv", "number", question, "2.5",
                              tuple(views), plans=plans))  # fmt: skip
    return samples


def ours(config: Config, samples: list[Sample]) -> dict[str, Any]:
    """Seconds of a step and its phases, from the run's own metrics."""
    run = RunFolder(config.run_dir)
    save_config(config, run.config_path)
    run_grpo(config, run, config.model.base, samples, lambda *_: None)
    rows = [row for row in read_jsonl(run.metrics_path) if row["stage"] == "grpo"][WARM_UP:]

    def median(name: str) -> float:
        return round(statistics.median(row[name] for row in rows), 4)

    return {
        "seconds": median("seconds"),
        "phases": {phase: median(f"seconds_{phase}") for phase in PHASES},
        "reply_tokens": median("reply_tokens"),
        "processed_per_image": rows[-1]["processed_per_image"],
    }


def trl(config: Config, samples: list[Sample]) -> dict[str, Any]:
    """Seconds of a step of TRL's trainer on the same samples."""
    from datasets import Dataset
    from PIL import Image
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    grpo = config.grpo
    processor = load_processor(config.model.base, config.model.max_pixels)
    processor.tokenizer.padding_side = "left"  # with the right one prompts of unequal length fail (trl issue 6401)
    targets = {sample.question: RewardTarget.from_sample(sample) for sample in samples}

    def reward(completions: list[Any], question: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        reward = RewardConfig()
        scores = [score_reply(text, targets[q], reward) for text, q in zip(texts, question, strict=True)]
        return [score.total(reward_weights(reward)) for score in scores]

    rows = [
        {
            "prompt": [{"role": "user", "content": sample_prompt(sample, "actions", "compact-v1")[0]["content"]}],
            "images": [Image.open(view.image_path) for view in sample.views],
            "question": sample.question,
        }
        for sample in samples
    ]

    class Clock(TrainerCallback):
        """When each step ended."""

        def __init__(self) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        max_steps=TRL_STEPS, gradient_checkpointing=False,
        num_generations=grpo.group_size, per_device_train_batch_size=grpo.group_size,
        gradient_accumulation_steps=grpo.prompts_per_step, max_completion_length=grpo.max_new_tokens,
        learning_rate=grpo.lr, beta=grpo.beta, temperature=1.0, loss_type="dapo", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=load_model(config.model.base).train(), reward_funcs=reward, args=arguments,
        train_dataset=Dataset.from_list(rows), processing_class=processor, callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    steps = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)][TRL_WARM_UP:]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return {"seconds": round(statistics.median(steps), 4), "reply_tokens": round(statistics.mean(lengths), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=tuple(SMALL), default="6m")
    parser.add_argument("--images", nargs="+", type=int, default=[3, 8])
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=("ours", "trl"), default=["ours", "trl"])
    options = parser.parse_args()
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = make_tiny(folder / "model", 0, SMALL[options.shape])
            samples = make_samples(folder, options.prompts * options.steps, images, options.pixels)
            config = settings(model, folder / "run", options, images)
            row: dict[str, Any] = {"shape": options.shape, "images": images, "pixels": options.pixels}
            if "ours" in options.ways:
                ray.init(address="local", include_dashboard=False, logging_level="warning", log_to_driver=False,
                         runtime_env={"env_vars": variables()})  # fmt: skip
                try:
                    row["ours"] = ours(config, samples)
                finally:
                    ray.shutdown()
            if "trl" in options.ways:
                torch.set_num_threads(len(os.sched_getaffinity(0)))
                row["trl"] = trl(config, samples)
            rows.append(row)
            seconds = ", ".join(f"{way} {row[way]['seconds']:.2f} s" for way in options.ways)
            print(f"{options.shape}, {images} images of {options.pixels} px: {seconds} a step", flush=True)
    print(f"written: {write_results('step', {'command': vars(options), 'rows': rows})}")


if __name__ == "__main__":
    main()
