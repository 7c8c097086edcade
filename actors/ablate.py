"""`hatch ablate`: the paper's ablations on one config and several seeds, stage by stage, each stage once.

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

from actors.engines import EnginePool
from actors.evaluate import evaluate_model, models_of
from actors.plan import planned_steps
from actors.progress import progress_bar
from actors.recipe import check_inputs, open_run, run_recipe, start_ray
from hatch_ray.ablation.page import write_page
from hatch_ray.ablation.results import summarise
from hatch_ray.ablation.shared import link_stage
from hatch_ray.ablation.tables import print_ablation
from hatch_ray.ablation.variants import Variant, grid_name, make_variants, stage_owners
from hatch_ray.benchmarks.columns import SPAR_MV
from hatch_ray.config import Config, ConfigError, save_config
from hatch_ray.data.build import SPLITS, build_dataset
from hatch_ray.data.store import is_dataset, read_dataset
from hatch_ray.evaluation.control import swap_images
from hatch_ray.evaluation.findings import FINAL
from hatch_ray.evaluation.heldout import SWAPPED, read_rows
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.run_version import write_version
from hatch_ray.sample import Sample


class Ablation:
    """The plan: every variant's config for every seed, and who trains which stage."""

    def __init__(self, base: Config, out: Path, seeds: int, grids: Sequence[int], only: Sequence[str] = ()) -> None:
        self.out = out.expanduser().resolve()
        built = base.data.root is not None and is_dataset(base.data.root / "train")
        self.data = base.data.root.resolve() if built and base.data.root else self.out / "data"
        self.base = base.model_copy(update={"run_dir": self.out})
        self.seeds = [base.seed + number for number in range(seeds)]
        self.variants = make_variants(base, grids, only)
        trained = {variant.name for variant in self.variants}
        self.grids = [grid for grid in grids if grid_name(grid, base) in trained]
        self.configs = {
            (seed, variant.name): variant.config(base, self.out, seed, self.data)
            for seed in self.seeds
            for variant in self.variants
        }
        self.owners = stage_owners(list(self.configs.values()))

    def of_seed(self, seed: int) -> list[tuple[Variant, Config]]:
        """The variants of one seed, in the order in which they are trained."""
        return [(variant, self.configs[seed, variant.name]) for variant in self.variants]

    def owner(self, config: Config, stage: str) -> Config:
        """The config whose run trains this stage."""
        return self.owners[config.run_dir, stage]


def describe_ablation(plan: Ablation, console: Console) -> None:
    """Print what would be trained, and what is shared. Starts nothing."""
    table = Table(title=f"Ablation in {plan.out}: each row for {len(plan.seeds)} seed(s)", title_justify="left")
    for heading in ("variant", *plan.base.stages):
        table.add_column(heading)
    total = 0
    for variant, config in plan.of_seed(plan.seeds[0]):
        cells = []
        for stage in plan.base.stages:
            if stage not in config.stages:
                cells.append("-")
            elif (owner := plan.owner(config, stage)) is not config:
                cells.append(f"from {Path(owner.run_dir).name}")
            else:
                steps = planned_steps(config, stage)
                cells.append(f"{steps} steps" if steps else "by pairs")
                total += steps or 0
        table.add_row(variant.label, *cells)
    console.print(table)
    console.print(f"{total * len(plan.seeds)} optimizer steps in all, PaStA by pairs not counted")


def run_ablation(plan: Ablation, console: Console) -> None:
    """Train, evaluate and compare; goes on where a stopped command was."""
    check_inputs(plan.base)
    for config in (plan.base, *plan.configs.values()):
        open_run(config)
    save_config(plan.base, RunFolder(plan.out).config_path)
    make_data(plan, console)
    done: list[int] = []
    for seed in plan.seeds:
        for variant, config in plan.of_seed(seed):
            console.print(f"\nseed {seed}: {variant.label}", markup=False)
            train_variant(plan, config, console)
        answer_heldout([config for _, config in plan.of_seed(seed)], console)
        done.append(seed)
        write_results(plan, done, console)


def make_data(plan: Ablation, console: Console) -> None:
    """Build OUT/data, unless the config names built datasets or they are there.

    Raises ConfigError when named datasets lack a split, or the held-out one has none of SPAR-Bench-MV's tasks.
    """
    for split in SPLITS:
        if not is_dataset(plan.data / split):
            if plan.data != plan.out / "data":
                raise ConfigError(f"{plan.data} has no {split}/ dataset; build both with `hatch data build`")
            with progress_bar(console, f"building {split} data") as report:
                build_dataset(plan.base.data, plan.base.seed, split, plan.data / split, report)
    tasks = {sample.task for sample in read_dataset(plan.data / "heldout")}
    if not tasks & set(SPAR_MV.groups):
        raise ConfigError(
            f"the held-out samples' tasks ({', '.join(sorted(tasks))}) are none of SPAR-Bench-MV, which the tables "
            "are of; name some over several views in data.tasks"
        )


def train_variant(plan: Ablation, config: Config, console: Console) -> None:
    """Link the stages that another run has, train the others."""
    run = RunFolder(config.run_dir)
    shared = [stage for stage in config.stages if plan.owner(config, stage) is not config]
    open_run(config)
    save_config(config, run.config_path)
    write_version(run)
    for stage in shared:
        link_stage(run, stage, RunFolder(plan.owner(config, stage).run_dir))
    run_recipe(config, console)


def answer_heldout(configs: Sequence[Config], console: Console) -> None:
    """The last model of every run of one seed answers the held-out samples, with true and with swapped images."""
    first = configs[0]
    assert first.data.root is not None
    samples = read_dataset(first.data.root / "heldout")[: first.eval.samples]
    pending = [config for config in configs if not is_answered(RunFolder(config.run_dir), samples)]
    if not pending:
        return
    swapped = swap_images(samples, first.seed)
    start_ray(first)
    engines = EnginePool(models_of(first, RunFolder(first.run_dir))[FINAL].folder, first)
    try:
        with progress_bar(console, "starting vLLM"):
            engines.ready()
        for config in pending:
            model = models_of(config, RunFolder(config.run_dir))[FINAL]
            evaluate_model(engines, FINAL, model, samples, config, console)
            evaluate_model(engines, FINAL + SWAPPED, model, swapped, config, console)
    finally:
        engines.stop()


def is_answered(run: RunFolder, samples: Sequence[Sample]) -> bool:
    """Whether the run's last model has answered these very samples, with true and with swapped images."""
    wanted = [sample.id for sample in samples]
    return all([row["id"] for row in read_rows(run, name)] == wanted for name in (FINAL, FINAL + SWAPPED))


def write_results(plan: Ablation, seeds: Sequence[int], console: Console) -> None:
    """Sum up the seeds that are done: OUT/ablation.json, OUT/ablation.html and the tables in the terminal."""
    runs = {
        variant.name: [RunFolder(plan.configs[seed, variant.name].run_dir) for seed in seeds]
        for variant in plan.variants
    }
    found = summarise(plan.base, plan.variants, runs, seeds, plan.grids)
    write_atomic(plan.out / "ablation.json", json.dumps(found, indent=2, allow_nan=False))
    page = write_page(found, plan.out)
    print_ablation(found, console)
    console.print(f"page: {page}", markup=False)
