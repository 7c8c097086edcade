"""The ledger of a GRPO run: every prompt group that was trained, once, and every sample that was set aside.

RUN/ledger.jsonl, one row a group:
    {"step", "place", "id", "version", "status": "trained" | "set aside", "reason"?}
step: counted from 0; place: the group's number in the run's order of prompts, from 0; version: of the weights that
sampled it. The rows of the steps behind a checkpoint are part of it; a resumed run goes on from those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatch_ray.run_folder import append_jsonl, read_jsonl, write_atomic

TRAINED = "trained"
ASIDE = "set aside"
LEDGER = "ledger.jsonl"


class Ledger:
    """The rows of one run, in memory and on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_jsonl(path)

    @property
    def aside(self) -> set[str]:
        """Ids of the samples that are set aside."""
        return {row["id"] for row in self.rows if row["status"] == ASIDE}

    def restore(self, checkpoint: Path | None) -> None:
        """Go back to a checkpoint's rows (none: to the start). What was set aside since stays so."""
        kept = read_jsonl(checkpoint / LEDGER) if checkpoint is not None else []
        known = {row["place"] for row in kept}
        kept += [row for row in self.rows if row["status"] == ASIDE and row["place"] not in known]
        self.rows = kept
        if kept or self.path.exists():
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows of a step that was trained."""
        self.rows += rows
        append_jsonl(self.path, list(rows))

    def set_aside(self, step: int, place: int, sample: str, reason: str) -> bool:
        """The row of a group whose sample is set aside, unless it is there; whether the sample is a new one."""
        new = sample not in self.aside
        if all(row["place"] != place for row in self.rows):
            row = {"step": step, "place": place, "id": sample, "version": -1, "status": ASIDE, "reason": reason}
            self.append([row])
        return new

    def problems(self, steps: int, per_step: int) -> list[str]:
        """What is wrong with the ledger of a run of `steps` steps: places missing, or trained twice. Empty: nothing."""
        seen: dict[int, int] = {}
        for row in self.rows:
            seen[row["place"]] = seen.get(row["place"], 0) + 1
        found = [f"place {place}: {count} times" for place, count in sorted(seen.items()) if count > 1]
        found += [f"place {place}: missing" for place in range(steps * per_step) if place not in seen]
        return found + [f"place {place}: beyond the last step" for place in seen if place >= steps * per_step]


def trained_row(step: int, place: int, sample: str, version: int) -> dict[str, Any]:
    """The row of a group that enters training."""
    return {"step": step, "place": place, "id": sample, "version": version, "status": TRAINED}
