"""`hatch ablate`: variants of a config on several seeds, each shared stage trained once, then compared.

OUT/config.yaml            the config that all variants change
OUT/data/{train,heldout}   the datasets that all runs share
OUT/seed<k>/<variant>/     an ordinary run each; a stage that an earlier one has too is a link to it
OUT/ablation.json, .html   figures and page, written again after every seed
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.commands.evaluate import evaluate_model, models_of, started_engines
from actors.runtime.progress import progress_bar
from actors.stages.dry_run import planned_steps
from actors.stages.recipe import check_inputs, open_run, run_recipe
from hatch_ray.ablation.page import print_ablation, write_page
from hatch_ray.ablation.results import summarise
from hatch_ray.ablation.shared import link_stage, stage_owners
from hatch_ray.ablation.variants import Variants
from hatch_ray.config import Config, ConfigError, save_config
from hatch_ray.data.store import SPLITS, built_root, is_dataset, read_dataset
from hatch_ray.evaluation.findings import FINAL
from hatch_ray.evaluation.heldout import SWAPPED, read_rows, swap_images
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.run_version import write_version
from hatch_ray.systems import system_of


class Ablation:
    """The plan: the config of every seed and variant, of which equal ones are one run, and who trains which stage."""

    def __init__(self, base: Config, variants: Variants, out: Path, seeds: int) -> None:
        self.out = out.expanduser().resolve()
        built = built_root(base.data.root)
        self.data = self.out / "data" if built is None else built.resolve()
        self.base = base.model_copy(update={"run_dir": self.out})
        self.seeds = [base.seed + number for number in range(seeds)]
        self.variants = variants
        self.configs: dict[tuple[int, str], Config] = {}
        runs: dict[str, Config] = {}
        for seed in self.seeds:
            for variant in variants.variants:
                config = variant.config(base, self.out, seed, self.data)
                content = config.model_dump_json(exclude={"run_dir"})
                self.configs[seed, variant.name] = runs.setdefault(content, config)
        self.runs = list(runs.values())
        self.owners = stage_owners(self.runs)

    def train(self, console: Console) -> None:
        """Train, evaluate and compare; goes on where a stopped command was."""
        check_inputs(self.base)
        for config in (self.base, *self.runs):
            open_run(config)
        save_config(self.base, RunFolder(self.out).config_path)
        self._make_data(console)
        for number, seed in enumerate(self.seeds, start=1):
            configs = [config for config in self.runs if config.seed == seed]
            for config in configs:
                console.print(f"\nseed {seed}: {Path(config.run_dir).name}", markup=False)
                self._train_run(config, console)
            answer_heldout(configs, console)
            self._compare(self.seeds[:number], console)

    def _make_data(self, console: Console) -> None:
        """Build OUT/data, unless the config names built datasets or they are there."""
        for split in SPLITS:
            if not is_dataset(self.data / split):
                if self.data != self.out / "data":
                    raise ConfigError(f"{self.data} has no {split}/ dataset; build both with `hatch data build`")
                with progress_bar(console, f"building {split} data") as report:
                    system_of(self.base).build("data", split, self.data / split, report)

    def _train_run(self, config: Config, console: Console) -> None:
        """Link the stages that another run has, train the others."""
        run = open_run(config)
        save_config(config, run.config_path)
        write_version(run)
        for stage in config.stages:
            if (owner := self.owners[config.run_dir, stage]) is not config:
                link_stage(run, stage, RunFolder(owner.run_dir))
        run_recipe(config, console)

    def _compare(self, seeds: Sequence[int], console: Console) -> None:
        """Sum up the seeds that are done: OUT/ablation.json, OUT/ablation.html and the tables in the terminal."""
        runs = {
            variant.name: [RunFolder(self.configs[seed, variant.name].run_dir) for seed in seeds]
            for variant in self.variants.variants
        }
        term = system_of(self.base).measure
        found = summarise(self.variants, runs, seeds, self.base.eval.bootstrap, self.base.seed, term)
        write_atomic(self.out / "ablation.json", json.dumps(found, indent=2, allow_nan=False))
        page = write_page(found, self.out)
        print_ablation(found, console)
        console.print(f"page: {page}", markup=False)

    def describe(self, console: Console) -> None:
        """Print what would be trained, and what is shared. Starts nothing."""
        stages = list(dict.fromkeys(stage for config in self.runs for stage in config.stages))
        table = Table(title=f"Ablation in {self.out}: each row for {len(self.seeds)} seed(s)", title_justify="left")
        for heading in ("variant", *stages):
            table.add_column(heading)
        total = 0
        for variant in self.variants.variants:
            config = self.configs[self.seeds[0], variant.name]
            cells = []
            for stage in stages:
                owner = self.owners.get((config.run_dir, stage))
                if owner is None:
                    cells.append("-")
                elif Path(owner.run_dir).name != variant.name:
                    cells.append(f"from {Path(owner.run_dir).name}")
                else:
                    steps = planned_steps(config, stage)
                    cells.append(f"{steps} steps" if steps else "by pairs")
                    total += steps or 0
            table.add_row(variant.title, *cells)
        console.print(table)
        console.print(f"{total * len(self.seeds)} optimizer steps in all, PaStA by pairs not counted")


def answer_heldout(configs: Sequence[Config], console: Console) -> None:
    """The last model of every run of one seed answers the held-out samples, with true and with swapped images."""
    first = configs[0]
    assert first.data.root is not None
    samples = read_dataset(first.data.root / "heldout")[: first.eval.samples]
    questions = {FINAL: samples, FINAL + SWAPPED: swap_images(samples, first.seed)}
    wanted = [sample.id for sample in samples]
    pending = [
        (config, name)
        for config in configs
        for name in questions
        if [row["id"] for row in read_rows(RunFolder(config.run_dir), name)] != wanted
    ]
    if not pending:
        return
    with started_engines(models_of(first, RunFolder(first.run_dir))[FINAL].folder, first, console) as engines:
        for config, name in pending:
            model = models_of(config, RunFolder(config.run_dir))[FINAL]
            evaluate_model(engines, name, model, questions[name], config, console)
