"""From kept predictions to figures: scores, columns with intervals, and what differs from the published rows.

A prediction is one JSON object: {"id", "task", "group", "cluster", "form", "n_images", "gold", "prompt", "completion",
"answer", "scores": {scorer: score}}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hatch_ray.benchmarks.item import Item, tagged_answer
from hatch_ray.benchmarks.paper import LAYOUT, SOURCES, TINY_GROUP, TINY_ROWS, Column, Part, published_rows
from hatch_ray.benchmarks.registry import Score
from hatch_ray.evaluation.intervals import Bootstrap, Interval

Prediction = dict[str, Any]
ITEM_FIELDS = ("id", "task", "group", "cluster", "form", "n_images", "gold")
NORMAL_95 = 1.959964
WHOLE_SHARE = 0.95
"""With fewer of a benchmark's rows asked, its figures are not put beside published ones."""


def predict_row(item: Item, prompt: str, completion: str, scorers: Mapping[str, Score]) -> Prediction:
    """The line kept of one reply."""
    row: Prediction = {name: getattr(item, name) for name in ITEM_FIELDS} | {"prompt": prompt, "completion": completion}
    if item.parts:
        row["parts"] = dict(item.parts)
    return rescored(row, scorers)


def rescored(row: Prediction, scorers: Mapping[str, Score]) -> Prediction:
    """The same prediction with its answer and scores computed again."""
    scores = {name: score(row["completion"], row["gold"], row["task"]) for name, score in scorers.items()}
    return row | {"answer": tagged_answer(row["completion"]), "scores": scores}


def _column(column: Column, values: np.ndarray, groups: np.ndarray, draws: Bootstrap) -> Interval | None:
    masks = [groups == group for group in column.groups]
    if column.shares is None:
        return draws.mean(np.where(np.logical_or.reduce(masks), values, np.nan))
    present = [(mask, share) for mask, share in zip(masks, column.shares, strict=True) if mask.any()]
    if not present or (column.needs_all and len(present) < len(masks)):
        return None
    return draws.weighted_mean(values, [mask for mask, _ in present], [share for _, share in present])


def _together(rows: Sequence[Prediction], scorer: str) -> list[Prediction]:
    """One row a cluster: its first, with the least score of all."""
    least: dict[str, Prediction] = {}
    for row in rows:
        known = least.setdefault(row["cluster"], row)
        if row["scores"][scorer] < known["scores"][scorer]:
            least[row["cluster"]] = known | {"scores": row["scores"]}
    return list(least.values())


def effective_rows(column: Column, groups: np.ndarray) -> float:
    """Number of equally weighted rows whose mean would be as uncertain: 1 / sum(share^2 / rows) over the groups."""
    counts = [int((groups == group).sum()) for group in column.groups]
    if column.shares is None:
        return float(sum(counts))
    present = [(share, count) for share, count in zip(column.shares, counts, strict=True) if count]
    whole = sum(share for share, _ in present)
    return 1 / sum((share / whole) ** 2 / count for share, count in present) if present else 0.0


def summarise(part: Part, rows: Sequence[Prediction], scorer: str, bootstrap: int, seed: int) -> dict[str, Any] | None:
    """Columns and tasks of a part under one scorer, percent, with 95 % intervals; None when no row belongs to it."""
    rows = [row for row in rows if row[part.by] in part.groups]
    if not rows:
        return None
    if part.together:
        rows = _together(rows, scorer)
    values = 100 * np.array([row["scores"][scorer] for row in rows], dtype=np.float64)
    groups = np.array([row[part.by] for row in rows])
    tasks = np.array([row["task"] for row in rows])
    draws = Bootstrap([row["cluster"] for row in rows], bootstrap, seed)
    columns = part.under(scorer)
    return {
        "part": part.name,
        "scorer": scorer,
        "rows": len(rows),
        "columns": {column.name: _column(column, values, groups, draws) for column in columns},
        "effective_rows": {column.name: effective_rows(column, groups) for column in columns},
        "tasks": {
            task: draws.mean(np.where(tasks == task, values, np.nan)) for task in dict.fromkeys(sorted(tasks.tolist()))
        },
    }


def standard_error(interval: Interval) -> float:
    """Of a bootstrapped figure: half of its 95 % interval over 1.96."""
    return (interval["high"] - interval["low"]) / 2 / NORMAL_95


def beyond_noise(ours: Interval, published: float, rows: float) -> int:
    """+1 when our figure is above the published one by more than chance gives in 95 % of cases, -1 below, 0 neither.

    Both are percent. The published one has p(1-p)/n as variance over its `rows`: exact for right or wrong, an upper
    bound for graded scores. Ours has its bootstrap's; where all rows scored alike, that is nothing, and the variance of
    the two figures' middle stands in. The two are taken as independent, though the questions are the same: this errs
    towards 0.
    """
    share, middle = published / 100, (published + ours["value"]) / 200
    own = standard_error(ours) or 100 * math.sqrt(middle * (1 - middle) / ours["n"])
    spread = math.hypot(own, 100 * math.sqrt(share * (1 - share) / rows))
    difference = ours["value"] - published
    return 0 if abs(difference) <= NORMAL_95 * spread else (1 if difference > 0 else -1)


def compare_published(table: int, summaries: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """[{"model", "part", "column", "published", "ours", "difference", "beyond_noise": -1 | 0 | 1, "source"}] for every
    figure of the table that the summaries (by part) also have.
    """
    found = []
    for row in published_rows(table):
        for (part, name), figure in zip(LAYOUT[table], row.figures, strict=True):
            ours = summaries[part]["columns"].get(name) if part in summaries else None
            if ours is None:
                continue
            tiny = row.group == TINY_GROUP and part in TINY_ROWS
            count = TINY_ROWS[part][name] if tiny else summaries[part]["effective_rows"][name]
            found.append({
                "model": row.model, "part": part, "column": name, "published": figure, "ours": ours["value"],
                "difference": round(ours["value"] - figure, 4), "beyond_noise": beyond_noise(ours, figure, count),
                "source": SOURCES[table],
            })  # fmt: skip
    return found


def is_whole(counts: Mapping[str, Any]) -> bool:
    """Whether nearly all rows of the benchmark were asked. counts: {"rows", "asked", ...}."""
    return counts["asked"] >= WHOLE_SHARE * counts["rows"]


def overall(summaries: Mapping[str, dict[str, Any]], table: int) -> float | None:
    """The mean of the table's averages, or None unless every one was measured."""
    parts = [part for part, column in LAYOUT[table] if column == "Avg" and part != "overall"]
    averages = [summaries[part]["columns"]["Avg"] for part in parts if part in summaries]
    if len(averages) < len(parts) or None in averages:
        return None
    return float(np.mean([average["value"] for average in averages]))
