"""Held-out evaluation: the stages' models answer the same questions greedily; the final one also with swapped images.

One set of vLLM engines serves all models: each takes over the next model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from actors.deadlines import CALL_SECONDS, wait_for_all
from actors.messages import Sampling
from actors.progress import Report, progress_bar
from actors.prompts import PromptMaker
from actors.recipe import load_datasets, start_ray
from actors.rollout import engines_ready, generate_all, start_engines, stop_actors
from hatch_ray.config import Config, ConfigError
from hatch_ray.evaluation.baselines import constant_replies, still_replies
from hatch_ray.evaluation.control import swap_images
from hatch_ray.evaluation.findings import FINAL, write_findings
from hatch_ray.evaluation.heldout import SWAPPED, score_rows, write_evaluation
from hatch_ray.evaluation.tables import print_evaluation
from hatch_ray.model.base import model_source
from hatch_ray.protocol.prompt import Mode
from hatch_ray.run_folder import STAGES, RunFolder
from hatch_ray.sample import Sample

DIRECT_STAGES = ("qa_sft",)
"""Stages whose model has learned answers without actions; they are asked for the answer alone."""


def models_of(config: Config, run: RunFolder) -> dict[str, Path]:
    """Name -> model folder: the base, then every finished stage that changes replies; the last one is "final"."""
    finished = [stage for stage in STAGES if run.progress().get(stage, {}).get("done") and stage != "pasta"]
    if not finished:
        raise ConfigError(f"{run.path} has no finished stage to evaluate; run `hatch train` first")
    models = {"base": Path(model_source(config.model.base))}
    models |= {stage: run.stage_model(stage) for stage in finished[:-1]}
    return models | {FINAL: run.stage_model(finished[-1])}


def answer(
    engines: Sequence, model: Path, samples: list[Sample], mode: Mode, config: Config, report: Report
) -> list[str]:
    """Greedy replies of one model, in the order of the samples."""
    wait_for_all([engine.load_folder.remote(str(model)) for engine in engines], "loading a model", CALL_SECONDS)
    maker = PromptMaker(config, model, mode)
    maker.check_length(samples, config.eval.max_new_tokens)
    sampling = Sampling(n=1, temperature=0.0, max_new_tokens=config.eval.max_new_tokens)
    rollouts = generate_all(engines, [maker.request(sample) for sample in samples], sampling, report)
    return [rollout.replies[0].text for rollout in rollouts]


def evaluate_run(config: Config, console: Console) -> None:
    """Evaluate every model of a run on its held-out samples; writes RUN/eval and prints the table."""
    run = RunFolder(config.run_dir)
    models = models_of(config, run)
    samples = load_datasets(config, run, console).heldout[: config.eval.samples]
    start_ray(config)
    settings = (config.eval.bootstrap, config.seed)
    engines = start_engines(models["base"], config)
    try:
        with progress_bar(console, "starting vLLM"):
            engines_ready(engines)
        for name, model in models.items():
            mode: Mode = "direct" if name in DIRECT_STAGES else "reason"
            with progress_bar(console, f"answering: {name}") as report:
                texts = answer(engines, model, samples, mode, config, report)
            write_evaluation(run, name, score_rows(samples, texts, config.reward, mode), *settings)
        swapped = swap_images(samples, config.seed)
        with progress_bar(console, f"answering: {FINAL}, images swapped") as report:
            texts = answer(engines, models[FINAL], swapped, "reason", config, report)
        write_evaluation(run, FINAL + SWAPPED, score_rows(swapped, texts, config.reward), *settings)
    finally:
        stop_actors(engines)
    write_evaluation(
        run, "constant", score_rows(samples, constant_replies(samples, config.reward), config.reward), *settings
    )
    write_evaluation(run, "still", score_rows(samples, still_replies(samples), config.reward), *settings)
    write_findings(run, *settings)
    print_evaluation(run, console)
