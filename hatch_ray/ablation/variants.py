"""The variants of the paper's ablations, as changes of one config, and what the paper reports of them.

Source: HATCH (Oi et al.), section 4.3: Table 2 (components), Table 3 (reasoning modality), figure 4 (grid of PaStA).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatch_ray.config import Config, ConfigError, make_config, set_dotted
from hatch_ray.run_folder import STAGES

FULL, NO_PASTA, NO_ACTOR, NO_BOTH, LANGUAGE = "full", "no_pasta", "no_actor", "no_both", "language"
TABLE_2 = (FULL, NO_PASTA, NO_ACTOR, NO_BOTH)
TABLE_3 = (LANGUAGE, FULL)
COLUMNS = ("Low", "Mid", "High", "Avg")

PAPER: dict[str, tuple[float, float, float, float]] = {
    FULL: (41.3, 47.4, 67.1, 53.6),
    NO_PASTA: (39.3, 43.5, 67.4, 52.0),
    NO_ACTOR: (35.4, 45.8, 66.5, 51.1),
    NO_BOTH: (36.9, 44.8, 67.1, 51.5),
    LANGUAGE: (40.7, 46.4, 66.1, 52.8),
}
"""Tables 2 and 3: SPAR-Bench-MV in percent, by COLUMNS. Figure 4 prints no figures."""


@dataclass(frozen=True)
class Variant:
    """One recipe to train. stages: those it keeps; changes: dotted settings that differ from the config's."""

    name: str
    label: str
    stages: tuple[str, ...] = STAGES
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, base: Config, folder: Path, seed: int, data: Path) -> Config:
        """The variant's config: its run lies in folder/seed<seed>/<name>, its datasets are those in `data`."""
        tree = base.model_dump(mode="json")
        tree |= {"run_dir": str(folder / f"seed{seed}" / self.name), "seed": seed, "stages": list(self.stages)}
        for key, value in {"data.root": str(data), **self.changes}.items():
            set_dotted(tree, key, value)
        return make_config(tree, where=f"variant {self.name}")


def grid_name(grid: int, base: Config) -> str:
    """Name of the variant with n x n patches; the config's own n is the full recipe."""
    return FULL if grid == base.settings("pasta").grid else f"grid{grid}"


def make_variants(base: Config, grids: Sequence[int], only: Sequence[str] = ()) -> list[Variant]:
    """Every variant, so ordered that a shared stage is trained by the first one that has it.

    `only` names those that are wanted beside the full recipe; empty: all.

    Raises ConfigError when the config does not name all four stages, or has language for its reasoning already, and for
    an unknown name.
    """
    if tuple(base.stages) != STAGES:
        raise ConfigError(f"an ablation leaves stages out itself; stages must be {', '.join(STAGES)}")
    if base.model.reasoning != "actions":
        raise ConfigError("an ablation compares actions with language itself; leave model.reasoning=actions")
    if min(grids, default=1) < 1:
        raise ConfigError(f"a grid has at least 1 patch a side, got {min(grids)}")
    variants = [
        Variant(FULL, "HATCH (all stages)"),
        Variant(NO_PASTA, "without PaStA", STAGES[1:]),
        Variant(NO_ACTOR, "without ActoR", STAGES[:2]),
        Variant(NO_BOTH, "without both", STAGES[1:2]),
        Variant(LANGUAGE, "language in place of actions", changes={"model.reasoning": "language"}),
    ]
    for grid in dict.fromkeys(grids):
        if grid != base.settings("pasta").grid:
            variants.append(Variant(f"grid{grid}", f"PaStA with n = {grid}", changes={"pasta.grid": grid}))
    known = [variant.name for variant in variants]
    for name in only:
        if name not in known:
            raise ConfigError(f"there is no variant {name!r}; the variants are {', '.join(known)}")
    return [variant for variant in variants if not only or variant.name == FULL or variant.name in only]


def stage_key(config: Config, stage: str) -> str:
    """All that the result of a stage depends on: equal keys, equal results. Where the run lies is no part of it."""
    tree = config.model_dump(mode="json")
    before = [name for name in config.stages if STAGES.index(name) <= STAGES.index(stage)]
    depends = {name: tree[name] for name in ("model", "data", "seed", *before)}
    if stage in ("pasta", "qa_sft"):
        depends["model"].pop("reasoning")  # they learn no reasoning
    if stage == "grpo":
        depends["reward"] = tree["reward"]
    return json.dumps(depends, sort_keys=True)


def stage_owners(configs: Sequence[Config]) -> dict[tuple[Path | str, str], Config]:
    """(run folder, stage) -> the first of the configs whose run trains that very stage."""
    first: dict[str, Config] = {}
    return {
        (config.run_dir, stage): first.setdefault(stage_key(config, stage), config)
        for config in configs
        for stage in config.stages
    }
