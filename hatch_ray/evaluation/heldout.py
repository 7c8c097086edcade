"""Held-out evaluation: judge replies, sum them up with intervals, compare two models on the same samples.

A "row" is one judged reply as plain JSON values; RUN/eval/<name>.jsonl holds them and RUN/eval/<name>.json their
summary. `name` is the model that replied: "base", a stage's name, "final", one of these with SWAPPED behind it (the
blind control), or that of a reply without looking (`System.blind_replies`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
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
    action = [{name: value} for name, value in plan.atoms]
    return {"from": plan.source, "to": plan.target, "action": action, "frame": plan.frame and asdict(plan.frame)}


def term(rows: Sequence[Row], name: str) -> np.ndarray:
    """A term or measure of every row, (rows,) float; NaN where it does not apply (none due, nothing readable)."""
    values = [(row["terms"] | row.get("measures", {})).get(name) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def names_of(rows: Sequence[Row], kind: str) -> list[str]:
    """The names of the rows' "terms" (reported as means) or "measures" (as medians: one wild one would rule a mean)."""
    return list(dict.fromkeys(name for row in rows for name in row.get(kind, {})))


def _by_task(rows: Sequence[Row], statistics: Callable[[np.ndarray], dict[str, Interval | None]]) -> dict[str, Any]:
    """The statistics of chosen rows, (rows,) bool, over all rows and for each task."""
    tasks = np.array([row["task"] for row in rows])
    by_task = {task: statistics(tasks == task) for task in sorted(set(tasks.tolist()))}
    return {"overall": statistics(np.ones(len(rows), dtype=bool)), "tasks": by_task}


def summarise(rows: Sequence[Row], bootstrap: int, seed: int) -> dict[str, Any]:
    """Every reward term and error with its interval, over all rows and by task, and how often each fault was met."""
    draws = Bootstrap([row["scene"] for row in rows], bootstrap, seed)
    kinds = dict.fromkeys(names_of(rows, "terms"), draws.mean)
    kinds |= dict.fromkeys(names_of(rows, "measures"), draws.median)

    def statistics(chosen: np.ndarray) -> dict[str, Interval | None]:
        return {name: kind(np.where(chosen, term(rows, name), np.nan)) for name, kind in kinds.items()}

    return {
        "samples": len(rows),
        "scenes": draws.scenes,
        "resampled": draws.unit,
        "bootstrap": bootstrap,
        **_by_task(rows, statistics),
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

    def statistics(chosen: np.ndarray) -> dict[str, Interval | None]:
        return {name: draws.mean(np.where(chosen, values, np.nan)) for name, values in differences.items()}

    return _by_task(before, statistics)


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


def swap_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The blind control: every sample with the images of another one of as many views; all else stays.

    Does the model use its images? They come from another scene; where all samples show one scene, from a sample that
    shares no image. `meta["swapped_from"]` names the giver. Raises ValueError when a sample has no possible giver.
    """
    one_scene = len({sample.scene for sample in samples}) == 1
    random = np.random.default_rng(seed)
    images = [frozenset(view.image_path for view in sample.views) for sample in samples]

    def may_give(taker: int, giver: int) -> bool:
        if len(samples[giver].views) != len(samples[taker].views):
            return False
        return not images[giver] & images[taker] if one_scene else samples[giver].scene != samples[taker].scene

    swapped = []
    for index, sample in enumerate(samples):
        givers = [other for other in range(len(samples)) if may_give(index, other)]
        if not givers:
            raise ValueError(
                f"no other held-out sample with {len(sample.views)} views can lend its images to {sample.id}; "
                "the blind control needs more held-out scenes (data.heldout_samples, data.rooms.heldout_scenes)"
            )
        giver = samples[int(random.choice(givers))]
        swapped.append(replace(sample, views=giver.views, meta=sample.meta | {"swapped_from": giver.id}))
    return swapped
