"""What the ablations show: answers by SPAR-Bench-MV's columns, paired differences, curves, agreement with a paper.

Every variant and seed answered the same held-out samples. A figure is the mean answer reward in percent over samples
and seeds, every sample alike, as in the paper's tables; its 95 % interval draws scenes and seeds (`Bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hatch_ray.ablation.variants import Comparison, Variant, Variants
from hatch_ray.benchmarks.columns import SPAR_MV
from hatch_ray.evaluation.findings import FINAL
from hatch_ray.evaluation.heldout import SWAPPED, Row, read_rows, term
from hatch_ray.evaluation.intervals import Bootstrap, Interval
from hatch_ray.run_folder import RunFolder, read_jsonl

Runs = Mapping[str, Sequence[RunFolder]]
"""Variant's name -> its run of every seed, in the seeds' order."""

CURVES = ("action", "answer")
"""Rewards that are drawn step by step."""


def verdict(paper: float, ours: Interval) -> str:
    """Whether a difference has the sign of the paper's: "agrees" or "contradicts" where it is beyond noise, else
    "within noise". A difference beyond noise contradicts a paper's 0.0.
    """
    if ours["low"] <= 0 <= ours["high"]:
        return "within noise"
    return "agrees" if ours["value"] * paper > 0 else "contradicts"


def column_masks(tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Column -> (rows,) bool: SPAR-Bench-MV's that have a row; where none of its tasks occurs, "Avg" of all rows."""
    masks = {column.name: np.isin(tasks, column.groups) for column in SPAR_MV.columns}
    return {name: mask for name, mask in masks.items() if mask.any()} or {"Avg": np.ones(len(tasks), bool)}


class Measure:
    """Means and paired differences over one set of (seed, sample) rows."""

    def __init__(self, runs: Runs, bootstrap: int, seed: int) -> None:
        self.runs = runs
        first = next(iter(runs))
        self.order = sorted(row["id"] for row in read_rows(runs[first][0], FINAL))
        rows = self.rows(first)
        self.seeds = np.repeat(np.arange(len(runs[first])), len(self.order))
        scenes, ids = [row["scene"] for row in rows], [row["id"] for row in rows]
        self.draws = Bootstrap(scenes, bootstrap, seed, self.seeds.tolist(), ids)
        self.columns = column_masks([row["task"] for row in rows])

    def rows(self, variant: str, evaluation: str = FINAL) -> list[Row]:
        """One evaluation of every seed, each in the order of the samples' ids. ValueError where samples differ."""
        rows: list[Row] = []
        for run in self.runs[variant]:
            by_id = {row["id"]: row for row in read_rows(run, evaluation)}
            if set(by_id) != set(self.order):
                raise ValueError(
                    f"{run.evaluation(evaluation)} does not answer the samples that the other runs answer; remove it, "
                    "and give the command again"
                )
            rows += [by_id[sample] for sample in self.order]
        return rows

    def answers(self, variant: str, evaluation: str = FINAL) -> np.ndarray:
        """(rows,) answer reward, percent."""
        return 100 * term(self.rows(variant, evaluation), "answer")

    def by_column(self, values: np.ndarray) -> dict[str, Interval]:
        """The mean of every column."""
        found = {name: self.draws.mean(np.where(mask, values, np.nan)) for name, mask in self.columns.items()}
        return {name: interval for name, interval in found.items() if interval is not None}

    def variant(self, variant: Variant) -> dict[str, Any]:
        """A variant's own figures. *_fall: by how much a reward falls when the images are swapped."""
        answers, rows = self.answers(variant.name), self.rows(variant.name)
        swapped = self.rows(variant.name, FINAL + SWAPPED)
        by_seed = [answers[self.columns["Avg"] & (self.seeds == seed)].mean() for seed in np.unique(self.seeds)]
        return {
            "title": variant.title,
            "paper": variant.paper,
            "columns": self.by_column(answers),
            "by_seed": [round(float(value), 4) for value in by_seed],
            "format": self.draws.mean(term(rows, "format")),
            "action": self.draws.mean(term(rows, "action")),
            "answer_fall": self.by_column(answers - 100 * term(swapped, "answer"))["Avg"],
            "action_fall": self.draws.mean(term(rows, "action") - term(swapped, "action")),
        }

    def table(self, table: Comparison, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """A comparison's rows: differences from its first variant, here and (where both are known) in the paper."""
        first, rows = table.variants[0], []
        for name in table.variants:
            ours = self.by_column(self.answers(name) - self.answers(first)) if name != first else {}
            printed = {
                column: round(found[name]["paper"][column] - found[first]["paper"][column], 1)
                for column in ours
                if column in found[name]["paper"] and column in found[first]["paper"]
            }
            verdicts = {column: verdict(paper, ours[column]) for column, paper in printed.items()}
            rows.append({"variant": name, "difference": ours, "paper": printed, "verdicts": verdicts})
        return {"title": table.title, "note": table.note, "rows": rows}

    def curves(self, curves: Comparison) -> dict[str, Any]:
        """Rewards while GRPO trains: their mean over the seeds at every step, and the first variant's mean over all
        steps less each other's, by seed. None: a step in which a reward was not due. A variant without it is left out.
        """
        found: dict[str, Any] = {"title": curves.title, "note": curves.note, "terms": {}, "change": {}}
        for name in CURVES:
            values = {variant: self._rewards(variant, name) for variant in curves.variants}
            values = {variant: table for variant, table in values.items() if np.isfinite(table).any(axis=1).all()}
            means = {variant: np.ma.masked_invalid(table).mean(axis=0) for variant, table in values.items()}
            found["terms"][name] = {
                variant: [None if value is None else round(value, 6) for value in mean.tolist()]
                for variant, mean in means.items()
            }
            of_runs = {variant: np.nanmean(table, axis=1) for variant, table in values.items()}
            first = next(iter(of_runs.values()), None)
            found["change"][name] = {
                variant: np.round(first - mean, 6).tolist() for variant, mean in of_runs.items() if mean is not first
            }
        return found

    def _rewards(self, variant: str, name: str) -> np.ndarray:
        """(seeds, steps) of one reward while GRPO trains; NaN in a step where it was not due."""
        tables = [[row for row in read_jsonl(run.metrics_path) if row["stage"] == "grpo"] for run in self.runs[variant]]
        return np.array([[row.get(f"reward_{name}", np.nan) for row in table] for table in tables], dtype=np.float64)


def summarise(variants: Variants, runs: Runs, seeds: Sequence[int], bootstrap: int, seed: int) -> dict[str, Any]:
    """All figures of the ablation as plain values (OUT/ablation.json). The runs must be trained and evaluated."""
    measure = Measure(runs, bootstrap, seed)
    found = {variant.name: measure.variant(variant) for variant in variants.variants}
    return {
        "seeds": list(seeds),
        "samples": len(measure.order),
        "scenes": measure.draws.scenes,
        "resampled": measure.draws.unit,
        "bootstrap": bootstrap,
        "columns": list(measure.columns),
        "variants": found,
        "tables": [measure.table(table, found) for table in variants.tables],
        "curves": measure.curves(variants.curves) if variants.curves else None,
    }
