"""The ledger of a GRPO run: every prompt group that was trained, once, or redrawn, and every sample that was set aside.

RUN/ledger.jsonl, one row a group:
    {"step", "place", "id", "version", "status": "trained" | "redrawn" | "set aside", "draw"?, "terms"?, "reason"?}
step: counted from 0; place: the group's number in the run's order of prompts, from 0; version: of the weights that
sampled it; terms: means over its replies, "total" among them (null: a term that was due for none of them). redrawn: a
group without variance whose place another one took, that of the next "draw" (grpo.redraw; 0 where it is not said). Of
each place one row is trained, or set aside at draw 0.

The rows of a step are on disk before the learner trains it, so a checkpoint has those of all steps behind it; a resumed
run drops the rows beyond.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hatch_ray.run_folder import append_jsonl, read_jsonl, write_atomic

TRAINED = "trained"
REDRAWN = "redrawn"
ASIDE = "set aside"


class Ledger:
    """The rows of one run, in memory and on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_jsonl(path)

    @property
    def aside(self) -> set[str]:
        """Ids of the samples that are set aside."""
        return {row["id"] for row in self.rows if row["status"] == ASIDE}

    def restore(self, step: int) -> None:
        """Go back to the rows of the steps before `step`. What was set aside since stays so."""
        kept = [row for row in self.rows if row["step"] < step or row["status"] == ASIDE]
        if len(kept) < len(self.rows):
            self.rows = kept
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows of a step that is handed to the learner."""
        self.rows += rows
        append_jsonl(self.path, list(rows), durable=True)

    def told(self) -> dict[int, list[dict[str, Any]]]:
        """What a sampler is told: the rows of the groups that earned something, trained or not, by step, in order."""
        steps: dict[int, list[dict[str, Any]]] = {}
        for row in sorted(self.rows, key=lambda row: row["step"]):
            if row["status"] != ASIDE:
                steps.setdefault(row["step"], []).append(row)
        return steps

    def set_aside(self, step: int, place: int, sample: str, reason: str, draw: int = 0) -> bool:
        """The row of a group whose sample is set aside, unless it is there; whether the sample is a new one."""
        new = sample not in self.aside
        if new if draw else all(row["place"] != place or row.get("draw") for row in self.rows):
            row = {"step": step, "place": place, "id": sample, "version": -1, "status": ASIDE, "reason": reason}
            self.append([row | _of_draw(draw)])
        return new

    def problems(self, steps: int, per_step: int) -> list[str]:
        """What is wrong with the ledger of a run of `steps` steps: places missing, or trained twice. Empty: nothing."""
        seen: dict[int, int] = {}
        for row in self.rows:
            if row["status"] == TRAINED or (row["status"] == ASIDE and not row.get("draw")):
                seen[row["place"]] = seen.get(row["place"], 0) + 1
        found = [f"place {place}: {count} times" for place, count in sorted(seen.items()) if count > 1]
        found += [f"place {place}: missing" for place in range(steps * per_step) if place not in seen]
        return found + [f"place {place}: beyond the last step" for place in seen if place >= steps * per_step]


def group_row(
    step: int, place: int, sample: str, version: int, scores: Sequence[Mapping[str, Any]], draw: int = 0,
    trained: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The row of a group that enters training, or whose place another one took. scores: `Score.row` of its replies."""
    status = TRAINED if trained else REDRAWN
    row = {"step": step, "place": place, "id": sample, "version": version, "status": status} | _of_draw(draw)
    return row | {"terms": means(scores, "terms")}


def _of_draw(draw: int) -> dict[str, int]:
    return {"draw": draw} if draw else {}


def means(scores: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float | None]:
    """The mean of every number of a kind ("terms" or "measures") over the replies that have it."""
    names = dict.fromkeys(name for score in scores for name in score[kind])
    return {name: mean([score[kind].get(name) for score in scores]) for name in names}


def mean(values: Sequence[Any]) -> float | None:
    """Of those that are not None; None where there are none."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
