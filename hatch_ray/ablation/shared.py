"""A stage that two variants have in common is trained once: the second run links to the first one's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hatch_ray.config import PRECISION, Config
from hatch_ray.run_folder import RunFolder, read_jsonl, write_jsonl
from hatch_ray.systems import system_of

MEASURED = ("patch_retrieval", "patch_matches", "kept")
"""What PaStA measures while it trains."""


def stage_key(config: Config, stage: str) -> str:
    """All that the result of a stage depends on: equal keys, equal results. Where the run lies is no part of it."""
    tree = config.model_dump(mode="json")
    before = tree["stages"][: tree["stages"].index(stage) + 1]
    system = system_of(config)
    sections = [system.stage(name).data for name in before]
    depends = {name: tree[name] for name in ("model", "data", "seed", *sections, *before)}
    depends |= {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in PRECISION}
    if stage in ("pasta", "qa_sft"):
        depends["model"].pop("reasoning")  # they learn no reasoning
    if stage == "grpo" or config.system != "hatch":  # another system's replies may follow from its reward
        depends["reward"] = tree.get("reward")
    return json.dumps(depends, sort_keys=True)


def stage_owners(configs: Sequence[Config]) -> dict[tuple[Path | str, str], Config]:
    """(run folder, stage) -> the first of the configs whose run trains that very stage."""
    first: dict[str, Config] = {}
    return {
        (config.run_dir, stage): first.setdefault(stage_key(config, stage), config)
        for config in configs
        for stage in config.stages
    }


def link_stage(run: RunFolder, stage: str, owner: RunFolder) -> None:
    """Make a finished stage of `owner` a stage of `run`: a link to its folder, its metrics, what it measured.

    Raises ValueError when the owner has not finished it, or the run has begun it itself.
    """
    link = run.path / stage
    if link.is_symlink() and run.progress().get(stage, {}).get("done"):
        return  # later stages of the run's own may stand on it already
    state = owner.progress().get(stage, {})
    if not state.get("done"):
        raise ValueError(f"{owner.path} has not finished {stage}")
    if not link.is_symlink():
        if link.exists():
            raise ValueError(f"{link} exists and is not a link to {owner.path / stage}; remove it")
        run.path.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(owner.path / stage, run.path), target_is_directory=True)
    rows = [row for row in read_jsonl(run.metrics_path) if row["stage"] != stage]
    rows += [row for row in read_jsonl(owner.metrics_path) if row["stage"] == stage]
    write_jsonl(run.metrics_path, rows)
    if stage == "pasta":
        run.evaluation("").parent.mkdir(exist_ok=True)
        for name in (name for name in MEASURED if owner.evaluation(name).exists()):
            shutil.copyfile(owner.evaluation(name), run.evaluation(name))
    run.set_progress(stage, step=state["step"], done=True)
    run.link_model(stage)
