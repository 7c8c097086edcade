"""What the ablations show: answers by SPAR-Bench-MV's columns, paired differences, curves, agreement with a paper.

Every variant and seed answered the same held-out samples. A figure is the mean answer reward in percent over samples
and seeds, every sample alike, as in the paper's tables; its 95 % interval draws scenes and seeds (`Bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hatch_ray.ablation.variants import Variants
from hatch_ray.benchmarks.paper import PARTS
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
    masks = {column.name: np.isin(tasks, column.groups) for column in PARTS["spar_mv"].columns}
    return {name: mask for name, mask in masks.items() if mask.any()} or {"Avg": np.ones(len(tasks), bool)}


class Measure:
    """Means and paired differences over one set of (seed, sample) rows. term: what tells right answers
    (`System.measure`).
    """

    def __init__(self, runs: Runs, bootstrap: int, seed: int, term: str = "answer") -> None:
        self.runs, self.term = runs, term
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
        return 100 * term(self.rows(variant, evaluation), self.term)

    def by_column(self, values: np.ndarray) -> dict[str, Interval]:
        """The mean of every column."""
        found = {name: self.draws.mean(np.where(mask, values, np.nan)) for name, mask in self.columns.items()}
        return {name: interval for name, interval in found.items() if interval is not None}

    def variant(self, name: str, against: str) -> dict[str, Any]:
        """A variant's figures, and their difference from another's. *_fall: what swapped images cost."""
        answers, rows, swapped = self.answers(name), self.rows(name), self.rows(name, FINAL + SWAPPED)
        by_seed = [answers[self.columns["Avg"] & (self.seeds == seed)].mean() for seed in np.unique(self.seeds)]
        return {
            "columns": self.by_column(answers),
            "by_seed": [round(float(value), 4) for value in by_seed],
            "format": self.draws.mean(term(rows, "format")),
            "action": self.draws.mean(term(rows, "action")),
            "answer_fall": self.by_column(answers - 100 * term(swapped, self.term))["Avg"],
            "action_fall": self.draws.mean(term(rows, "action") - term(swapped, "action")),
            "against": against,
            "difference": self.by_column(answers - self.answers(against)) if name != against else {},
        }

    def curves(self, name: str, variants: Sequence[str]) -> dict[str, Any]:
        """A reward while GRPO trains: its mean over the seeds at every step, and over all steps the first variant's
        less each other's, by seed. None: a step in which it was not due. A variant without it is left out.
        """
        tables = {}
        for variant in variants:
            logs = [read_jsonl(run.metrics_path) for run in self.runs[variant]]
            values = [[row.get(f"reward_{name}", np.nan) for row in log if row["stage"] == "grpo"] for log in logs]
            table = np.array(values, dtype=np.float64)
            if np.isfinite(table).any(axis=1).all():
                tables[variant] = np.ma.masked_invalid(table)
        steps = {variant: table.mean(axis=0).round(6).tolist() for variant, table in tables.items()}
        means = {variant: table.mean(axis=1) for variant, table in tables.items()}
        first = next(iter(means.values()), None)
        change = {variant: (first - mean).round(6).tolist() for variant, mean in means.items() if mean is not first}
        return {"steps": steps, "change": change}


def summarise(
    variants: Variants, runs: Runs, seeds: Sequence[int], bootstrap: int, seed: int, term: str = "answer"
) -> dict[str, Any]:
    """All figures of the ablation as plain values (OUT/ablation.json). The runs must be trained and evaluated."""
    measure = Measure(runs, bootstrap, seed, term)
    curves = dict.fromkeys((*CURVES, term))
    found: dict[str, dict[str, Any]] = {}
    for variant in variants.variants:
        other = variants.against(variant)
        own = found[variant.name] = variant.model_dump() | measure.variant(variant.name, other)
        differences = {
            column: round(own["paper"][column] - value, 1)
            for column, value in found[other]["paper"].items()
            if column in own["difference"] and column in own["paper"]
        }
        own["paper_difference"] = differences
        own["verdicts"] = {column: verdict(paper, own["difference"][column]) for column, paper in differences.items()}
    return {
        "seeds": list(seeds),
        "samples": len(measure.order),
        "scenes": measure.draws.scenes,
        "resampled": measure.draws.unit,
        "bootstrap": bootstrap,
        "columns": list(measure.columns),
        "variants": found,
        "tables": _tables(found),
        "curves": {name: measure.curves(name, variants.curves) for name in curves if variants.curves},
        "notes": variants.notes,
    }


def _tables(found: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Title -> the variants of each table, after what they are compared with."""
    tables: dict[str, list[str]] = {}
    for name, variant in found.items():
        if variant["against"] != name:
            rows = tables.setdefault(variant["table"], [])
            rows += [each for each in (variant["against"], name) if each not in rows]
    return tables
