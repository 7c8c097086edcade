"""Held-out evaluation: the stages' models answer the same questions greedily; the final one also with swapped images.

One set of vLLM engines serves all models: each takes over the next model's weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from actors.rollout.engines import EnginePool
from actors.rollout.prompts import PromptMaker
from actors.runtime.messages import Request, Sampling
from actors.runtime.placement import engine_needs
from actors.runtime.progress import ANSWERED, Report, Told, nobody, progress_bar
from actors.stages.recipe import load_datasets, start_ray
from actors.stages.run_processes import RunProcesses
from hatch_ray.config import Config, ConfigError
from hatch_ray.evaluation.findings import FINAL, write_findings
from hatch_ray.evaluation.heldout import SWAPPED, score_rows, swap_images, write_evaluation
from hatch_ray.evaluation.tables import print_evaluation
from hatch_ray.model.folder_check import check_model_folder
from hatch_ray.model.source import model_source
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of


@dataclass(frozen=True)
class Asked:
    """A model to evaluate. folder: its Hugging Face folder; stage: it is asked as this stage's model."""

    folder: Path
    stage: str


def models_of(config: Config, run: RunFolder) -> dict[str, Asked]:
    """By name, each a whole folder: the base, every finished stage that changes replies; the last one is "final"."""
    stages = [stage.name for stage in system_of(config).stages if stage.kind != "pasta"]
    finished = [stage for stage in stages if run.progress().get(stage, {}).get("done")]
    if not finished:
        raise ConfigError(f"{run.path} has no finished stage to evaluate; run `hatch train` first")
    models = {"base": Asked(Path(model_source(config.model.base)), stages[-1])}
    for stage in finished:
        name = FINAL if stage == finished[-1] else stage
        models[name] = Asked(run.stage_model(stage), stage)
    for model in models.values():
        if model.folder.is_dir():
            check_model_folder(model.folder)
    return models


@contextmanager
def started_engines(
    model: Path, config: Config, console: Console, processes: RunProcesses | None = None
) -> Iterator[EnginePool]:
    """Engines, up when the block begins: those of `processes`, else new ones with `model`, which end with the block."""
    start_ray(config, engine_needs(config))
    processes = processes or RunProcesses(config, RunFolder(config.run_dir))
    with ExitStack() as stack:
        with progress_bar(console, "starting vLLM"):
            engines = stack.enter_context(processes.engines(model))
        yield engines


def replies(
    engines: EnginePool, requests: Sequence[Request], config: Config, report: Report | None = None
) -> list[str]:
    """Greedy replies, in order."""
    sampling = Sampling(n=1, temperature=0.0, max_new_tokens=config.eval.max_new_tokens)
    return [rollout.replies[0].text for rollout in engines.generate(requests, sampling, report)]


def answer(engines: EnginePool, model: Asked, samples: list[Sample], config: Config, report: Report) -> list[str]:
    """Greedy replies of one model, in the order of the samples."""
    engines.load_folder(model.folder)
    maker = PromptMaker(config, model.folder, model.stage)
    maker.check_length(samples, config.eval.max_new_tokens)
    return replies(engines, [maker.request(sample) for sample in samples], config, report)


def evaluate_model(
    engines: EnginePool,
    name: str,
    model: Asked,
    samples: list[Sample],
    config: Config,
    console: Console,
    told: Told = nobody,
) -> None:
    """Ask one model every sample and write RUN/eval/<name>.json and .jsonl."""
    start = time.monotonic()
    with progress_bar(console, f"answering: {name.replace('_', ' ')}") as report:
        texts = answer(engines, model, samples, config, report)
    told(ANSWERED, time.monotonic() - start)
    rows = score_rows(system_of(config), model.stage, samples, texts)
    write_evaluation(RunFolder(config.run_dir), name, rows, config.eval.bootstrap, config.seed)


def evaluate_run(config: Config, console: Console, processes: RunProcesses | None = None, told: Told = nobody) -> None:
    """Evaluate every model of a run on its held-out samples; writes RUN/eval and prints the table.

    processes: those of a run that has just been trained here, whose engines go on. told: hears of every model that has
    answered.
    """
    run = RunFolder(config.run_dir)
    models = models_of(config, run)
    system = system_of(config)
    samples = load_datasets(config, run, console, system.evaluated()).heldout[: config.eval.samples]
    swapped = swap_images(samples, config.seed)
    with started_engines(models["base"].folder, config, console, processes) as engines:
        for name, model in models.items():
            evaluate_model(engines, name, model, samples, config, console, told)
        evaluate_model(engines, FINAL + SWAPPED, models[FINAL], swapped, config, console, told)
        for name, others in system.controls(samples).items():
            evaluate_model(engines, f"{FINAL}_{name}", models[FINAL], others, config, console, told)
    settings = (config.eval.bootstrap, config.seed)
    for name, texts in system.blind_replies(samples).items():
        write_evaluation(run, name, score_rows(system, system.stages[-1].name, samples, texts), *settings)
    write_findings(system, run, *settings)
    print_evaluation(system, run, console)
