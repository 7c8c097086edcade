"""`hatch eval RUN --on WHERE`: every stage's model answers another held-out set: what a skill brings or costs there.

WHERE is `rooms` (HATCH's questions over two views of rendered rooms), a section of the run's config (viewpoint: `views`
or `data`), or a dataset's folder. RUN/eval/on_WHERE/ holds replies and summaries by model, `transfer.json` the table.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from actors.commands.evaluate import evaluate_model, models_of, started_engines
from actors.runtime.progress import progress_bar
from actors.stages.recipe import check_sample, load_datasets
from hatch_ray.config import Config, ConfigError
from hatch_ray.config_sections import DataConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.store import is_dataset, read_dataset
from hatch_ray.evaluation.transfer import transfer, transfer_table
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of

ROOMS = "rooms"


def samples_of(where: str, config: Config, run: RunFolder, console: Console) -> tuple[str, list[Sample]]:
    """(name of the set, its held-out samples); rooms are built in the run's folder once. Raises ConfigError."""
    if where == ROOMS:
        path = run.data("heldout", ROOMS)
        if not is_dataset(path):
            with progress_bar(console, "building rooms") as report:
                build_dataset(rooms_of(config), config.seed, "heldout", path, report)
        return ROOMS, read_dataset(path)
    sections = [name for name in type(config).model_fields if isinstance(getattr(config, name), DataConfig)]
    if where in sections:
        return where, load_datasets(config, run, console, where).heldout
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"--on {where}: give rooms, a section of the config ({', '.join(sections)}), or a dataset's folder"
        )
    folder = folder / "heldout" if is_dataset(folder / "heldout") else folder
    return f"{folder.resolve().parent.name}-{folder.name}", read_dataset(folder)


def rooms_of(config: Config) -> DataConfig:
    """HATCH's questions over two views, as letters where the task has them; the rooms of the run's own sizes."""
    tree = {"kind": "rooms", "tasks": ["multi"], "formats": ["select"], "max_views": 2}
    return DataConfig.model_validate(tree | {"heldout_samples": config.eval.samples, "rooms": config.data.rooms})


def evaluate_on(config: Config, where: str, console: Console) -> None:
    """Ask all models, write and print the table. Raises ConfigError, and ValueError for samples that do not fit."""
    run, system = RunFolder(config.run_dir), system_of(config)
    models = models_of(config, run)
    name, samples = samples_of(where, config, run, console)
    samples = samples[: config.eval.samples]
    for sample in samples:
        check_sample(sample, config, system.answer_forms)
    folder = f"on_{name}"
    run.evaluation(folder).with_suffix("").mkdir(parents=True, exist_ok=True)
    with started_engines(models["base"].folder, config, console) as engines:
        for model, asked in models.items():
            evaluate_model(engines, f"{folder}/{model}", asked, samples, config, console)
    found = transfer(system, run, folder, list(models), config.eval.bootstrap, config.seed)
    write_atomic(run.evaluation(f"{folder}/transfer"), json.dumps(found, indent=2, allow_nan=False))
    console.print(transfer_table(system, found))
