"""What the ablations show: answers by SPAR-Bench-MV's columns, differences from the full recipe, curves, agreement.

Every variant and seed answered the same held-out samples. A figure is the mean answer reward in percent over samples
and seeds, every sample alike, as in the paper's tables; its 95 % interval draws scenes and seeds (`Bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hatch_ray.ablation.variants import COLUMNS, FULL, NO_PASTA, PAPER, TABLE_2, TABLE_3, Variant, grid_name
from hatch_ray.benchmarks.columns import SPAR_MV
from hatch_ray.config import Config
from hatch_ray.evaluation.findings import FINAL
from hatch_ray.evaluation.heldout import SWAPPED, Row, read_rows, term
from hatch_ray.evaluation.intervals import Bootstrap, Interval
from hatch_ray.run_folder import RunFolder, read_jsonl

Runs = Mapping[str, Sequence[RunFolder]]
"""Variant's name -> its run of every seed, in the seeds' order."""

CURVES = {"action": "reward_action", "answer": "reward_answer"}


def _rows(runs: Sequence[RunFolder], name: str, order: Sequence[str]) -> list[Row]:
    """One evaluation of every seed, each in this order of sample ids."""
    rows: list[Row] = []
    for run in runs:
        by_id = {row["id"]: row for row in read_rows(run, name)}
        if set(by_id) != set(order):
            raise ValueError(
                f"{run.evaluation(name)} does not answer the samples that the other runs answer; remove it, and give "
                "the command again"
            )
        rows += [by_id[sample] for sample in order]
    return rows


def _column_masks(tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Column -> (rows,) bool; columns without a row are left out."""
    groups = {column.name: set(column.groups) for column in SPAR_MV.columns}
    masks = {name: np.array([task in groups[name] for task in tasks]) for name in COLUMNS}
    return {name: mask for name, mask in masks.items() if mask.any()}


def verdict(paper: float, ours: Interval) -> str:
    """Whether a difference has the sign of the paper's: "agrees" or "contradicts" where it is beyond noise, else
    "within noise". A difference beyond noise contradicts a paper's 0.0.
    """
    if ours["low"] <= 0 <= ours["high"]:
        return "within noise"
    return "agrees" if ours["value"] * paper > 0 else "contradicts"


class _Measure:
    """Means and paired differences over one set of (seed, sample) rows."""

    def __init__(self, runs: Runs, bootstrap: int, seed: int) -> None:
        self.runs = runs
        self.order = sorted(row["id"] for row in read_rows(runs[FULL][0], FINAL))
        rows = self.rows(FULL, FINAL)
        seeds = np.repeat(np.arange(len(runs[FULL])), len(self.order))
        scenes, ids = [row["scene"] for row in rows], [row["id"] for row in rows]
        self.draws = Bootstrap(scenes, bootstrap, seed, seeds.tolist(), ids)
        self.seeds = seeds
        self.columns = _column_masks([row["task"] for row in rows])
        self.every = self.columns["Avg"]

    def rows(self, variant: str, evaluation: str) -> list[Row]:
        return _rows(self.runs[variant], evaluation, self.order)

    def answers(self, variant: str, evaluation: str = FINAL) -> np.ndarray:
        """(rows,) answer reward, percent."""
        return 100 * term(self.rows(variant, evaluation), "answer")

    def by_column(self, values: np.ndarray) -> dict[str, Interval | None]:
        return {name: self.draws.mean(np.where(mask, values, np.nan)) for name, mask in self.columns.items()}

    def variant(self, name: str) -> dict[str, Any]:
        answers, rows = self.answers(name), self.rows(name, FINAL)
        found: dict[str, Any] = {
            "columns": self.by_column(answers),
            "by_seed": [round(float(answers[self.every & (self.seeds == s)].mean()), 4) for s in np.unique(self.seeds)],
            "format": self.draws.mean(term(rows, "format")),
            "action": self.draws.mean(term(rows, "action")),
            "answer_fall": self.by_column(answers - self.answers(name, FINAL + SWAPPED))["Avg"],
            "action_fall": self.draws.mean(term(rows, "action") - term(self.rows(name, FINAL + SWAPPED), "action")),
        }
        if name != FULL:
            found["difference"] = self.by_column(answers - self.answers(FULL))
        return found


def _agreement(variants: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every difference from the full recipe that the paper prints too."""
    found = []
    for name in dict.fromkeys(TABLE_2 + TABLE_3):
        if name not in variants:
            continue
        for column, ours in variants[name].get("difference", {}).items():
            index = COLUMNS.index(column)
            paper = round(PAPER[name][index] - PAPER[FULL][index], 1)
            found.append({
                "variant": name, "column": column, "paper": paper, "ours": ours, "verdict": verdict(paper, ours),
            })  # fmt: skip
    return found


def _grpo_rewards(runs: Runs, name: str, metric: str) -> np.ndarray:
    """(seeds, steps) of one reward while GRPO trains; NaN in a step where it was not due."""
    tables = [[row for row in read_jsonl(run.metrics_path) if row["stage"] == "grpo"] for run in runs[name]]
    return np.array([[row.get(metric, np.nan) for row in table] for table in tables], dtype=np.float64)


def _curves(runs: Runs) -> dict[str, dict[str, list[float | None]]]:
    """Figure 3: mean over the seeds of GRPO's action and answer reward at every step, with and without PaStA."""
    curves: dict[str, dict[str, list[float | None]]] = {}
    for name in (FULL, NO_PASTA):
        if name not in runs:
            continue
        curves[name] = {}
        for key, metric in CURVES.items():
            values = np.ma.masked_invalid(_grpo_rewards(runs, name, metric)).mean(axis=0)
            curves[name][key] = [None if value is None else round(value, 6) for value in values.tolist()]
    return curves


def _curve_change(runs: Runs) -> dict[str, list[float]]:
    """Mean over all steps of (with PaStA - without), one figure a seed."""
    change: dict[str, list[float]] = {}
    if NO_PASTA not in runs:
        return change
    for key, metric in CURVES.items():
        with_pasta, without = (np.nanmean(_grpo_rewards(runs, name, metric), axis=1) for name in (FULL, NO_PASTA))
        change[key] = np.round(with_pasta - without, 6).tolist()
    return change


def summarise(
    config: Config, variants: Sequence[Variant], runs: Runs, seeds: Sequence[int], grids: Sequence[int]
) -> dict[str, Any]:
    """All figures of the ablation as plain values (OUT/ablation.json). The runs must be trained and evaluated.

    What needs a variant that was not trained is left out.
    """
    measure = _Measure(runs, config.eval.bootstrap, config.seed)
    found = {variant.name: {"label": variant.label} | measure.variant(variant.name) for variant in variants}
    grid_runs = {grid: grid_name(grid, config) for grid in sorted(set(grids))}
    below = measure.answers(NO_PASTA) if NO_PASTA in runs else None
    return {
        "seeds": list(seeds),
        "samples": len(measure.order),
        "scenes": measure.draws.scenes,
        "resampled": measure.draws.unit,
        "bootstrap": config.eval.bootstrap,
        "variants": found,
        "agreement": _agreement(found),
        "grids": [
            {"grid": grid, "variant": name, "over_no_pasta": measure.draws.mean(measure.answers(name) - below)}
            for grid, name in grid_runs.items()
            if below is not None
        ],
        "curves": _curves(runs),
        "curve_change": _curve_change(runs),
    }
