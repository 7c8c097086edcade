"""Held-out evaluation: judge replies, sum them up with intervals, compare two models on the same samples.

A "row" is one judged reply as plain JSON values; RUN/eval/<name>.jsonl holds them and RUN/eval/<name>.json their
summary. `name` is the model that replied: "base", a stage's name, "final", one of these with SWAPPED behind it (the
blind control), or that of a reply without looking (`System.blind_replies`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hatch_ray.evaluation.intervals import Bootstrap, Interval
from hatch_ray.rewards.score import TOTAL
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic, write_jsonl
from hatch_ray.sample import PairPlan, Sample, View
from hatch_ray.systems.base import System

Row = dict[str, Any]

SWAPPED = "_swapped"


def score_rows(system: System, stage: str, samples: Sequence[Sample], texts: Sequence[str]) -> list[Row]:
    """Judge one reply a sample with the training reward, as replies of this stage's model.

    Raises ValueError when their numbers differ.
    """
    if len(samples) != len(texts):
        raise ValueError(f"{len(texts)} replies for {len(samples)} samples")
    return [_row(system, stage, sample, text) for sample, text in zip(samples, texts, strict=True)]


def _row(system: System, stage: str, sample: Sample, text: str) -> Row:
    score = system.score(text, system.target(sample, stage)).row(system.weights())
    return {
        "id": sample.id,
        "scene": sample.scene,
        "task": sample.task,
        "answer_form": sample.answer_form,
        "question": sample.question,
        "images": [str(view.image_path) for view in sample.views],
        "fov_deg": _field_of_view(sample.views[0]),
        "marks": [mark.to_row() for mark in sample.marks],
        "gold_answer": sample.answer,
        "gold_plans": [_gold_plan(plan) for plan in sample.plans],
        "completion": text,
        **score,
        **({"swapped_from": sample.meta["swapped_from"]} if "swapped_from" in sample.meta else {}),
    }


def _field_of_view(view: View) -> float | None:
    """Horizontal, in degrees, of a camera whose optical axis is the middle of its image; None when unknown."""
    if view.intrinsics is None:
        return None
    return round(float(np.degrees(2 * np.arctan((view.intrinsics[0, 2] + 0.5) / view.intrinsics[0, 0]))), 1)


def _gold_plan(plan: PairPlan) -> Row:
    frame = None if plan.frame is None else {"pitch_deg": plan.frame.pitch_deg, "roll_deg": plan.frame.roll_deg}
    action = [{name: value} for name, value in plan.atoms]
    return {"from": plan.source, "to": plan.target, "action": action, "frame": frame}


def term(rows: Sequence[Row], name: str) -> np.ndarray:
    """A term or measure of every row, (rows,) float; NaN where it does not apply (none due, nothing readable)."""
    values = [(row["terms"] | row.get("measures", {})).get(name) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def names_of(rows: Sequence[Row], kind: str) -> list[str]:
    """The names of the rows' "terms" (reported as means) or "measures" (as medians: one wild one would rule a mean)."""
    return list(dict.fromkeys(name for row in rows for name in row.get(kind, {})))


def _by_task(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Task -> (rows,) bool."""
    tasks = np.array([row["task"] for row in rows])
    return {task: tasks == task for task in sorted(set(tasks.tolist()))}


def summarise(rows: Sequence[Row], bootstrap: int, seed: int) -> dict[str, Any]:
    """Every reward term and error with its interval, over all rows and by task, and how often each fault was met."""
    draws = Bootstrap([row["scene"] for row in rows], bootstrap, seed)
    everything = np.ones(len(rows), dtype=bool)

    def statistics(chosen: np.ndarray) -> dict[str, Interval | None]:
        means = {name: draws.mean(np.where(chosen, term(rows, name), np.nan)) for name in names_of(rows, "terms")}
        medians = {
            name: draws.median(np.where(chosen, term(rows, name), np.nan)) for name in names_of(rows, "measures")
        }
        return means | medians

    return {
        "samples": len(rows),
        "scenes": draws.scenes,
        "resampled": draws.unit,
        "bootstrap": bootstrap,
        "overall": statistics(everything),
        "tasks": {task: statistics(chosen) for task, chosen in _by_task(rows).items()},
        "reasons": dict(Counter(reason for row in rows for reason in row["reasons"]).most_common()),
    }


def in_order_of(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """`others` in the order of `rows`. Raises ValueError when the two did not answer the same samples."""
    if sorted(row["id"] for row in rows) != sorted(row["id"] for row in others):
        raise ValueError("the two evaluations answer different samples; evaluate both on the same held-out set")
    partner = {row["id"]: row for row in others}
    return [partner[row["id"]] for row in rows]


def compare(before: Sequence[Row], after: Sequence[Row], bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Paired differences of the reward terms, after minus before on the same samples, overall and by task.

    Raises ValueError when the two did not answer the same samples.
    """
    after = in_order_of(before, after)
    draws = Bootstrap([row["scene"] for row in before], bootstrap, seed)
    differences = {name: term(after, name) - term(before, name) for name in names_of([*before, *after], "terms")}
    return {
        "overall": {name: draws.mean(values) for name, values in differences.items()},
        "tasks": {
            task: {name: draws.mean(np.where(chosen, values, np.nan)) for name, values in differences.items()}
            for task, chosen in _by_task(before).items()
        },
    }


def write_evaluation(run: RunFolder, name: str, rows: Sequence[Row], bootstrap: int, seed: int) -> dict[str, Any]:
    """Write RUN/eval/<name>.jsonl (rows) and RUN/eval/<name>.json (summary); returns the summary."""
    summary = {"name": name} | summarise(rows, bootstrap, seed)
    path = run.evaluation(name)
    write_jsonl(path.with_suffix(".jsonl"), rows)
    write_atomic(path, json.dumps(summary, indent=2, allow_nan=False))
    return summary


def read_table(run: RunFolder, name: str) -> Any:
    """RUN/eval/<name>.json: a summary, or what else lies there; None when it was not made."""
    path = run.evaluation(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_rows(run: RunFolder, name: str) -> list[Row]:
    """RUN/eval/<name>.jsonl; empty when that evaluation was not made.

    Rows of older versions hold their measures behind the total, among the terms; they are given their place.
    """
    rows = read_jsonl(run.evaluation(name).with_suffix(".jsonl"))
    for row in rows:
        if "measures" not in row:
            names = list(row["terms"])
            row["measures"] = {name: row["terms"].pop(name) for name in names[names.index(TOTAL) + 1 :]}
    return rows
