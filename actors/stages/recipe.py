"""The recipe: the stages in order, each from the model of the one before, resumed where a run was stopped.

    HATCH: data -> pasta -> qa_sft -> cold_start -> grpo; another system has stages of its own (`hatch_ray.systems`)

One function a step; Ray is started here and nowhere else in a training run.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from actors.runtime.bucket_sync import brought_home, pushed
from actors.runtime.placement import Need, stage_needs
from actors.runtime.progress import Report, Told, nobody, progress_bar
from actors.runtime.resources import check_carrier, check_resources, wait_for_nodes
from actors.runtime.status import Live
from actors.runtime.stopping import EXIT_CODE, StopAsked, asked, stage_at_work, stoppable
from actors.stages.run_processes import RunProcesses
from hatch_ray.cluster_address import LOCAL, cluster_address
from hatch_ray.config import Config, ConfigError, save_config
from hatch_ray.config_sections import DataConfig
from hatch_ray.control import not_live, read_status
from hatch_ray.data.rgbd import read_sequences
from hatch_ray.data.spar.reader import check_spar
from hatch_ray.data.store import SPLITS, built_root, is_dataset, read_dataset
from hatch_ray.disk import clear_leftovers
from hatch_ray.environment import variables
from hatch_ray.model.size import check_prefixes, count_parameters
from hatch_ray.model.source import model_source
from hatch_ray.run_folder import RunFolder
from hatch_ray.run_version import compare_with_run, write_version
from hatch_ray.sample import Sample
from hatch_ray.sinks import check_sinks, mirrored
from hatch_ray.systems import system_of
from hatch_ray.systems.base import Stage

FREE_TO_CHANGE = {
    "run_dir", "stages", "rollout", "reward_actors", "learner", "recovery", "checkpoints", "deadlines", "eval", "serve",
    "colocated", "environment", "tensorboard", "wandb", "trackio", "storage",
}  # fmt: skip
"""Parts of the config that may differ when a run is resumed: they change no result, or say only what to run."""


@dataclass(frozen=True)
class Datasets:
    """What a section of the config (`Stage.data`) gives."""

    train: list[Sample]
    heldout: list[Sample]


def open_run(config: Config, console: Console | None = None) -> RunFolder:
    """The run folder; an existing one must have been made with the same config. Writes nothing.

    Where another version of hatch-ray made it, one line on the console says which, and what differs. Raises ConfigError
    that names every setting that differs, or the version that is needed.
    """
    run = RunFolder(config.run_dir)
    if run.config_path.is_file():
        line = compare_with_run(config, run, FREE_TO_CHANGE)
        if line is not None and console is not None:
            console.print(line, markup=False)
        if not_live(run, status := read_status(run)) is None:
            assert status is not None
            raise ConfigError(
                f"{run.path} is being trained by process {status['pid']} on {status['host']}; stop that one first, or "
                "choose another run_dir"
            )
    elif run.path.exists() and any(run.path.iterdir()):
        raise ConfigError(f"{run.path} is not empty and is not a run folder; choose another run_dir")
    return run


def check_inputs(config: Config) -> None:
    """Refuse a missing data folder or package, a wrong model folder or an unknown task before anything is made."""
    check_sinks(config)
    if "grpo" in config.stages:
        check_carrier(config)
    source = Path(model_source(config.model.base))
    if source.is_dir():
        count_parameters(config.model.base)
    check_prefixes(config.model.base, config.grpo.shared_prefix)
    for section in system_of(config).sections():
        _check_data(section, config)


def _check_data(section: str, config: Config) -> None:
    data: DataConfig = config.settings(section)
    root = data.root
    built = built_root(root)
    if built is not None:
        for split in SPLITS:
            if is_dataset(built / split):
                read_dataset(built / split)
    if data.kind == "spar":
        if built is None:
            check_spar(data, config.stages)
        return
    system_of(config).check(section)
    if data.kind == "rgbd" and root is None:
        raise ConfigError(f"{section}.kind=rgbd needs {section}.root=PATH, the folder of the posed RGB-D frames")
    if root is not None and not root.is_dir():
        raise ConfigError(f"{section}.root={root} is not a folder")
    own = RunFolder(config.run_dir).data("train", section)
    if root is not None and data.kind == "rgbd" and built is None and not is_dataset(own):
        read_sequences(data)


def load_datasets(config: Config, run: RunFolder, console: Console, section: str = "data") -> Datasets:
    """A section's datasets: those below its root where it holds built ones, else built into the run folder once."""
    system = system_of(config)
    built = built_root(config.settings(section).root)
    splits: dict[str, list[Sample]] = {}
    for split in SPLITS:
        path = run.data(split, section) if built is None else built / split
        if not is_dataset(path):
            if built is not None:
                raise ConfigError(f"{built} has train/ but no {split}/ dataset; build both with `hatch data build`")
            with progress_bar(console, f"building {split} {section}") as report:
                system.build(section, split, path, report)
        splits[split] = read_dataset(path)
        for sample in splits[split]:
            check_sample(sample, config, system.answer_forms)
    return Datasets(splits["train"], splits["heldout"])


def check_sample(sample: Sample, config: Config, forms: Sequence[str]) -> None:
    """Raise ConfigError for a sample that the run's model cannot be asked, or whose reply nothing rewards."""
    if len(sample.views) > config.model.max_images:
        raise ConfigError(
            f"sample {sample.id} has {len(sample.views)} images, more than model.max_images="
            f"{config.model.max_images}; raise it or choose other data.tasks"
        )
    if sample.answer_form not in forms:
        raise ConfigError(
            f"sample {sample.id} has the answer form {sample.answer_form!r}; the system {config.system} rewards "
            f"{', '.join(forms)}"
        )


def start_ray(config: Config, needs: Sequence[Need] | None = None) -> None:
    """Join the cluster that RAY_ADDRESS (or a submitted job) names, or start one on this machine; then check that
    `needs`, or else the config's stages, find a place there.
    """
    if ray.is_initialized():
        return
    address = cluster_address()
    if address == LOCAL:
        ray.init(
            address=address, include_dashboard=False, logging_level="warning",
            log_to_driver=bool(os.environ.get("HATCH_DEBUG")),
        )  # fmt: skip
    else:
        ray.init(address=address, logging_level="warning", runtime_env={"env_vars": variables(config.environment)})
    if needs is None:
        check_resources(config)
    else:
        wait_for_nodes(needs, config.deadlines.nodes_seconds, print)


def stage_input(config: Config, run: RunFolder, name: str) -> str | Path:
    """The model a stage starts from: the last finished stage before it, else the base."""
    progress = run.progress()
    names = [stage.name for stage in system_of(config).stages]
    for earlier in reversed(names[: names.index(name)]):
        if progress.get(earlier, {}).get("done"):
            return run.stage_model(earlier)
    return model_source(config.model.base)


def run_stage(
    stage: Stage, config: Config, run: RunFolder, data: Datasets, report: Report, live: Live, processes: RunProcesses
) -> dict[str, Any]:
    """One stage, from its input model to RUN/<stage>/model; returns what it achieved."""
    from actors.stages.grpo import run_grpo
    from actors.stages.pasta import run_pasta
    from actors.stages.sft import run_sft

    model = stage_input(config, run, stage.name)
    match stage.kind:
        case "pasta":
            return run_pasta(stage.name, config, run, model, data.train, data.heldout, report, processes)
        case "sft":
            return run_sft(stage.name, config, run, model, data.train, report, processes)
        case "grpo":
            return run_grpo(config, run, model, data.train, report, live, processes)


def both(first: Report, second: Report) -> Report:
    """Reports to both."""

    def report(done: int, total: int) -> None:
        first(done, total)
        second(done, total)

    return report


def run_recipe(
    config: Config,
    console: Console,
    then: Callable[[Config, RunProcesses], None] | None = None,
    told: Told = nobody,
) -> RunFolder:
    """Run config.stages in order; finished ones are skipped, an unfinished one goes on from its last checkpoint.

    then: called after the last stage, with the run's engines still there. told: hears of every stage that ends.

    A run whose home is a bucket is pulled first and pushed meanwhile (`runtime/bucket_sync.py`). Raises SystemExit when
    SIGTERM asked to stop, after the stage at work has saved.
    """
    saved, config, home = config, *brought_home(config, console)
    check_inputs(config)
    run = open_run(config, console)
    start_ray(config)
    with nullcontext() if home is None else pushed(home, console):
        fresh = not run.path.exists()
        save_config(saved, run.config_path)
        write_version(run)
        clear_leftovers(run.path)
        try:
            with stoppable(run), RunProcesses(config, run) as processes:
                pending = [stage for stage in config.stages if not run.progress().get(stage, {}).get("done")]
                processes.start(pending, evaluated=then is not None)
                _run_stages(config, run, fresh, console, processes, told)
                if then is not None:
                    processes.workers.end()
                    then(config, processes)
        except StopAsked:
            console.print(f"stopped as asked; the same command goes on from what {run.path} has", markup=False)
            raise SystemExit(EXIT_CODE) from None
    return run


def _run_stages(
    config: Config, run: RunFolder, fresh: bool, console: Console, processes: RunProcesses, told: Told
) -> None:
    try:
        data = {section: load_datasets(config, run, console, section) for section in system_of(config).sections()}
    except Exception:
        processes.workers.end()
        if fresh:
            shutil.rmtree(run.path)
        raise
    for section, found in data.items():
        console.print(f"{section}: {len(found.train)} training and {len(found.heldout)} held-out samples")
    system = system_of(config)
    with mirrored(config, run), Live(run, config.stages, config.deadlines, processes.notes) as live:
        for number, stage in enumerate(map(system.stage, config.stages), start=1):
            if asked():
                raise StopAsked
            label = f"[{number}/{len(config.stages)}] {stage.title}"
            if run.progress().get(stage.name, {}).get("done"):
                console.print(f"{label}: already done")
                continue
            console.print(label, markup=False)
            wait_for_nodes(stage_needs(config, stage.name), config.deadlines.nodes_seconds, console.print)
            start = time.monotonic()
            live.at(stage.name, 0, 0)
            with progress_bar(console, stage.name) as bar, stage_at_work():
                told_both = both(bar, partial(live.at, stage.name))
                achieved = run_stage(stage, config, run, data[stage.data], told_both, live, processes)
            run.set_progress(stage.name, step=int(achieved["steps"]), done=True)
            run.link_model(stage.name)
            console.print(f"  {achieved['line']} ({time.monotonic() - start:.0f} s)", markup=False)
            for text in achieved.get("warnings", []):
                console.print(f"  warning: {text}", markup=False)
            told(stage.name, time.monotonic() - start)
    console.print(f"model: {run.model}")
